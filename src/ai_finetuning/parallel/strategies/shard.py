"""FSDP2: every layer's weights are cut over the data ranks and gathered while the layer computes (arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from ...models.parts import layer_list
from ..batch import Batch, LossFunction
from ..weights.materialize import WeightPlacement


class ModelWithLoss(nn.Module):
    """Model and loss in one forward, so that weights the loss reads (the head's) are gathered when it does."""

    def __init__(self, model: nn.Module, loss: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Batch) -> Tensor:
        """The sum of the batch's token losses."""
        return self._loss(self.model, batch)


def shard_layers(
    model: nn.Module, mesh: DeviceMesh, loss: LossFunction, weight_placement: WeightPlacement
) -> ModelWithLoss:
    """Shards each block, then the rest, in place; gradients are summed, not averaged."""
    step = ModelWithLoss(model, loss)
    shard_blocks(step, list(layer_list(model) or ()), mesh, weight_placement)
    return step


def shard_blocks(
    step: nn.Module, blocks: Sequence[nn.Module], mesh: DeviceMesh, weight_placement: WeightPlacement
) -> None:
    """Shards blocks of a module, then its other weights, in place; a whole block is on the device for that moment only.

    Gradients are summed, not averaged.
    """
    for block in blocks:
        weight_placement.materialize(block)
        fully_shard(block, mesh=mesh)
    weight_placement.materialize(step)
    fully_shard(step, mesh=mesh)
    for module in (*blocks, step):
        assert isinstance(module, FSDPModule)
        # The loss is divided by the step's label tokens already. gloo cannot multiply while it sums (PREMUL_SUM).
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
