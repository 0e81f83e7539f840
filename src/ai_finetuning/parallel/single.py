"""One process, one device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .layout import Layout
from .settle import Destination
from .state import Tensors, load_optimizer_tensors, load_weights, optimizer_tensors
from .strategy import LossFunction


class SingleDevice:
    """The plain strategy: autocast where asked, a gradient scaler for fp16."""

    data_rank = 0
    data_size = 1
    rank = 0
    is_main = True
    layouts: dict[str, Layout] | None = None
    _casts_stay = True  # autocast keeps the 16-bit copies of weights until the forward pass ends

    def __init__(self, device: torch.device, *, autocast: torch.dtype | None = None, scaler: bool = False) -> None:
        self.device = device
        self._autocast = autocast
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaler)

    @property
    def destination(self) -> Destination | None:
        """None: the model is loaded as it trains."""
        return None

    def placement(self, *, quantized: bool) -> dict[str, Any]:
        """The device."""
        return {"device": self.device}

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Moves the model to the device, where it is not there already."""
        if not getattr(model, "is_quantized", False) and not hasattr(model, "hf_device_map"):
            model.to(self.device)
        self._model = model
        self._loss = loss
        return model

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keeps the optimizer for the scaler."""
        self._optimizer = optimizer
        return optimizer

    def sum(self, value: float) -> float:
        """The value itself."""
        return value

    def any(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def gather(self, value: Any) -> list[Any]:
        """The value alone."""
        return [value]

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """All of them."""
        return list(model.named_parameters())

    def _computing(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast, cache_enabled=self._casts_stay)

    def _loss_of(self, batch: Any) -> Tensor:
        """The sum of the token losses of a batch that is on the device."""
        return self._loss(self._model, batch)

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch, the last of its step or not; one process has nothing to send."""
        return contextlib.nullcontext()

    def _backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self._scaler.scale(loss))

    def forward_backward(self, group: Sequence[Any], num_valid: float) -> float:
        """Accumulates gradients micro-batch by micro-batch."""
        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(group):
            with self._communicating(index == len(group) - 1):
                with self._computing():
                    loss = self._loss_of(batch.to(self.device)) / num_valid
                self._backward(loss)
            total += loss.detach().float()
        return float(total)

    @torch.no_grad()
    def evaluate(self, batches: Sequence[Any]) -> tuple[float, int]:
        """Sums of losses and label tokens; the model's mode is put back."""
        was_training = self._model.training
        self._model.eval()
        total, tokens = torch.zeros((), device=self.device, dtype=torch.float64), 0
        try:
            for batch in batches:
                with self._computing():
                    total += self._loss_of(batch.to(self.device)).double()
                tokens += batch.num_label_tokens
        finally:
            self._model.train(was_training)
        return float(total), tokens

    def _gradients(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.grad is not None]

    def clip_grad_norm(self, max_norm: float) -> float:
        """Norm over all gradients; scaled down in place where it exceeds max_norm."""
        if self._scaler.is_enabled():
            self._scaler.unscale_(self._optimizer)
        parameters = self._gradients()
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if max_norm > 0 and torch.isfinite(norm):
            torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        return float(norm)

    def step(self) -> bool:
        """One update; fp16 skips it, and lowers the scale, where gradients overflowed."""
        scale = self._scaler.get_scale()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return not self._scaler.is_enabled() or self._scaler.get_scale() >= scale

    def tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
        """The weights themselves and the optimizer's state."""
        return {"model": self._trained(model), "optimizer": optimizer_tensors(optimizer)}

    def load_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """Copies weights into the model's and gives the optimizer its state."""
        load_weights(self._trained(model), tensors["model"])
        load_optimizer_tensors(optimizer, tensors.get("optimizer", {}))

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named_parameters(model) if parameter.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """The gradient scaler's numbers."""
        return dict(self._scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the scaler's numbers back."""
        if state:
            self._scaler.load_state_dict(state)

    def close(self) -> None:
        """Nothing to release."""
