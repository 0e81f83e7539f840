"""`use_accelerate=True`: the same step through Hugging Face Accelerate, kept thin: one process, or replicas (ddp)."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel

from ...errors import ProcessesError
from ..batch import Batch, LossFunction
from ..strategies.distributed import DataParallel
from ..strategies.shard import ModelWithLoss
from ..strategies.single import SingleDevice


def _accelerator(device: torch.device) -> Any:
    """An Accelerator that neither casts nor counts.

    Its own gradient accumulation is left at 1: it would divide the loss by the number of micro-batches, while ours is
    already divided by the label tokens of the whole step (docs/design/distributed.md, fault 6).

    Raises:
        ProcessesError: Accelerate counts other processes than there are, and would not sum their gradients.
    """
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", gradient_accumulation_steps=1)
    there = dist.get_world_size() if dist.is_initialized() else 1
    if accelerator.num_processes != there:
        raise ProcessesError(
            f"このプロセスの Accelerate は {accelerator.num_processes} プロセス用に初期化済みですが、実行は {there} プロセスです。Accelerate "
            "を先に使わないか、use_accelerate=False にしてください。",
            f"Accelerate was initialised for {accelerator.num_processes} processes in this process before, but the run "
            f"has {there}; do not initialise Accelerate before training, or set use_accelerate=False.",
        )
    return accelerator


class Accelerated(SingleDevice):
    """Accelerate places the model and runs the backward pass; loss, clipping and scaling stay ours."""

    def __init__(self, device: torch.device, *, autocast: torch.dtype | None = None, scaler: bool = False) -> None:
        super().__init__(device, autocast=autocast, scaler=scaler)
        self._accelerator = _accelerator(device)

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Hands the model to Accelerate."""
        super().prepare(model, loss)
        self._model = self._accelerator.prepare_model(model, device_placement=False)
        return self._model

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Registers the optimizer with Accelerate; steps go to the optimizer itself."""
        self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        return super().attach(optimizer)

    def _backward(self, loss: Tensor) -> None:
        self._accelerator.backward(self._scale.scale(loss))

    def close(self) -> None:
        """Lets Accelerate forget its references."""
        self._accelerator.free_memory()


class AcceleratedReplicas(DataParallel):
    """Several processes, each with the whole model, in the DistributedDataParallel that Accelerate makes.

    Model and loss are one module inside it, so that any loss, over padded rows or over documents, runs within its
    forward pass.
    """

    def __init__(
        self, device: torch.device, mesh: DeviceMesh, *, autocast: torch.dtype | None = None, scaler: bool = False
    ) -> None:
        super().__init__(device, mesh, autocast=autocast, scaler=scaler)
        self._accelerator = _accelerator(device)

    def _replicate(self, model: nn.Module, loss: LossFunction) -> None:
        """The wrapper sends the first rank's weights to all and sums gradients; no reducer of ours."""
        step = self._accelerator.prepare_model(ModelWithLoss(model, loss), device_placement=False)
        assert isinstance(step, DistributedDataParallel)
        self._replicas = step

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Registers the optimizer with Accelerate; steps go to the optimizer itself."""
        self._accelerator.prepare_optimizer(optimizer, device_placement=False)
        return super().attach(optimizer)

    def _loss_of(self, batch: Batch) -> Tensor:
        loss: Tensor = self._replicas(batch)
        return loss

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self._replicas.no_sync()

    def _backward(self, loss: Tensor) -> None:
        # The wrapper averages over the ranks what is a part of one sum.
        self._accelerator.backward(self._scale.scale(loss) * self.data_size)

    def close(self) -> None:
        """Lets Accelerate forget its references."""
        self._accelerator.free_memory()
