"""FSDP2: every layer's weights are cut over the data ranks and gathered while the layer computes (arXiv:2304.11277)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ...models.parts import layer_list, unwrapped
from ..batch import Batch, LossFunction
from ..weights.gathered import gather_for_work
from ..weights.materialize import WeightPlacement


@dataclass(frozen=True)
class Sharding:
    """What data ranks gather, and when (docs/decisions/0117).

    Attributes:
        gathered: dtype in which weights are sent and compute; gradients are summed in fp32. None: as they are held.
        ends_apart: embedding and head are gathered on their own, each while it computes, and not for the whole pass.
            One weight that is both is needed at both ends, and stays with what is around the layers.
    """

    gathered: torch.dtype | None = None
    ends_apart: bool = False

    @property
    def policy(self) -> MixedPrecisionPolicy:
        """For fully_shard; what a module is given keeps its dtype, as under autocast alone."""
        if self.gathered is None:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(self.gathered, reduce_dtype=torch.float32, cast_forward_inputs=False)


AS_HELD = Sharding()


def sharding_for(device: torch.device, autocast: torch.dtype | None, *, fp32_master_weights: bool) -> Sharding:
    """What suits a device: on GPUs memory and links are short; CPUs keep the order and the bits of their sums.

    Only fp32 masters are sent in 16 bit: other weights are held as they are sent, and packed 4-bit ones are no numbers.
    """
    if device.type != "cuda":
        return AS_HELD
    return Sharding(autocast if fp32_master_weights else None, ends_apart=True)


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
    model: nn.Module,
    mesh: DeviceMesh,
    loss: LossFunction,
    weight_placement: WeightPlacement,
    sharding: Sharding = AS_HELD,
) -> ModelWithLoss:
    """Shards each block, embedding and head where they go apart, then the rest, in place; gradients are summed, not
    averaged.
    """
    step = ModelWithLoss(model, loss)
    inner = unwrapped(model)
    embedding, head = inner.get_input_embeddings(), inner.get_output_embeddings()
    tied = head is None or bool({id(p) for p in head.parameters()} & {id(p) for p in embedding.parameters()})
    if sharding.ends_apart and not tied:
        cut_already = any(isinstance(parameter, DTensor) for parameter in head.parameters())
        _shard(embedding, mesh, weight_placement, sharding)
        # The backward pass begins at the head: dropped behind the forward pass, it would be gathered twice.
        _shard(head, mesh, weight_placement, sharding, reshard_after_forward=False)
        if not cut_already:  # along `tp`; then the loss calls the head, and does not read its weight
            gather_for_work(head)
    shard_blocks(step, list(layer_list(model) or ()), mesh, weight_placement, sharding)
    if sharding.gathered is not None:
        embedding.register_forward_hook(_in_fp32)
    return step


def _in_fp32(_: nn.Module, __: Any, states: Tensor) -> Tensor:
    """What layers add to stays fp32, as the embedding of an fp32 master gives it."""
    return states.float()


def let_go(step: nn.Module) -> None:
    """Drops what is still gathered: without a backward pass the last weights of a forward pass stay, as they were then."""
    for module in step.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shard_blocks(
    step: nn.Module,
    blocks: Sequence[nn.Module],
    mesh: DeviceMesh,
    weight_placement: WeightPlacement,
    sharding: Sharding = AS_HELD,
) -> None:
    """Shards blocks of a module, then its other weights, in place; a whole block is on the device for that moment only.

    Gradients are summed, not averaged.
    """
    for module in (*blocks, step):
        _shard(module, mesh, weight_placement, sharding)


def _shard(
    module: nn.Module, mesh: DeviceMesh, weight_placement: WeightPlacement, sharding: Sharding, **options: Any
) -> None:
    weight_placement.materialize(module)
    fully_shard(module, mesh=mesh, mp_policy=sharding.policy, **options)
    assert isinstance(module, FSDPModule)
    # The loss is divided by the step's label tokens already. gloo cannot multiply while it sums (PREMUL_SUM).
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
