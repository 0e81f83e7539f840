"""`use_accelerate=True`: the same step through Hugging Face Accelerate, kept thin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .single import SingleDevice
from .strategy import LossFunction


class Accelerated(SingleDevice):
    """Accelerate places the model and runs the backward pass; loss, clipping and scaling stay ours.

    Accelerate's own gradient accumulation is left at 1: it would divide the loss by the number of micro-batches, while ours is
    already divided by the label tokens of the whole step (DISTRIBUTED.md section 10, fault 6).
    """

    def __init__(self, device: torch.device, *, autocast: torch.dtype | None = None, scaler: bool = False) -> None:
        super().__init__(device, autocast=autocast, scaler=scaler)
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no", gradient_accumulation_steps=1)

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
        self._accelerator.backward(self._scaler.scale(loss))

    def close(self) -> None:
        """Lets Accelerate forget its references."""
        self._accelerator.free_memory()

    def state_dict(self) -> dict[str, Any]:
        """The gradient scaler's numbers."""
        return super().state_dict()
