"""One process, one device."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...models.modes import evaluating
from ..batch import Batch, LossFunction
from ..host_states import HostStates
from ..lane import Lane, lane_for
from ..loss_scale import LossScale
from ..saved_activations import SavedActivations
from ..strategy import Update
from ..weights.layout import Layout, local
from ..weights.materialize import WeightPlacement
from ..weights.state import Tensors, load_optimizer_tensors, load_weights, optimizer_tensors


class SingleDevice:
    """The plain strategy: autocast where asked, a loss scale for fp16."""

    data_rank = 0
    data_size = 1
    rank = 0
    is_main = True
    steps_optimizer = True
    exchanges = 0
    layouts: dict[str, Layout] | None = None
    host_states: HostStates | None = None
    _saved: SavedActivations | None = None
    _casts_stay = True  # autocast keeps the 16-bit copies of weights until the forward pass ends

    def __init__(self, device: torch.device, *, autocast: torch.dtype | None = None, scaler: bool = False) -> None:
        self.device = device
        self._autocast = autocast
        self._scale = LossScale(enabled=scaler)

    @property
    def weight_placement(self) -> WeightPlacement | None:
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
        """Keeps the optimizer for update()."""
        self._optimizer = optimizer
        return optimizer

    def offload(self, what: str, lane: Lane | None = None) -> None:
        """From now on, `activations` or the `optimizer`'s state lie in the host's memory while nothing reads them."""
        if what == "none":
            return
        lane = lane or lane_for(self.device)
        if what == "activations":
            weights = [local(parameter.data) for parameter in self._model.parameters()]
            self._saved = SavedActivations(lane, self.device.type, weights)
        if what == "optimizer":
            self.host_states = HostStates(self._optimizer, lane)

    def agree(self, counts: Sequence[float], flags: Sequence[bool] = ()) -> tuple[list[float], list[bool]]:
        """Counts and flags themselves."""
        return list(counts), list(flags)

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

    def _loss_of(self, batch: Batch) -> Tensor:
        """The sum of the token losses of a batch that is on the device."""
        return self._loss(self._model, batch)

    def _communicating(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around a micro-batch, the last of its step or not; one process has nothing to send."""
        return contextlib.nullcontext()

    def _backward(self, loss: Tensor) -> None:
        torch.autograd.backward(self._scale.scale(loss))

    def forward_backward(self, group: Sequence[Batch], num_valid: float) -> Tensor:
        """Accumulates gradients micro-batch by micro-batch."""
        total = torch.zeros((), device=self.device)
        for index, batch in enumerate(group):
            with self._communicating(index == len(group) - 1):
                with self._computing(), self._saved or contextlib.nullcontext():
                    loss = self._loss_of(batch.to(self.device)) / num_valid
                self._backward(loss)
            total += loss.detach().float()
        return total

    def score(self, batches: Sequence[Batch]) -> None:
        """Runs the loss on this process's batches, without gradients, in eval mode."""
        self._evaluate_mine(batches)

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """Sums of losses, and of what they are a mean over; the model's mode is put back."""
        return self._evaluate_mine(batches)

    def _evaluate_mine(self, batches: Sequence[Batch]) -> tuple[float, int]:
        total, tokens = torch.zeros((), device=self.device, dtype=torch.float64), 0
        with evaluating(self._model):
            for batch in batches:
                with self._computing():
                    total += self._loss_of(batch.to(self.device)).double()
                tokens += batch.num_units
        return float(total), tokens

    def _with_gradients(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.grad is not None]

    @torch.no_grad()
    def update(self, loss: Tensor, max_norm: float, also: Tensor | None = None) -> Update:
        """Reads loss and norm, and what goes with them, once; an overflow under fp16 lowers the scale."""
        parameters = self._with_gradients()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self._scale.unscale(gradients)
        mine = loss.double()[None] if also is None else torch.cat([loss.double()[None], also])
        sums, norm = self._measure(mine, gradients)
        size, lost, *rest = torch.cat([norm.to(sums.device).double()[None], sums]).tolist()
        finite = math.isfinite(lost) and math.isfinite(size)
        if finite and max_norm > 0:
            self._clip(parameters, norm, size, max_norm)
        if finite:
            (self.host_states or self._optimizer).step()
        self._scale.update(overflow=not math.isfinite(size))
        return Update(lost, size, applied=finite, scaled=self._scale.enabled, also=tuple(rest))

    def _measure(self, mine: Tensor, gradients: list[Tensor]) -> tuple[Tensor, Tensor]:
        """[n] sums over the data ranks (the first one is the loss), and the gradient norm over all ranks, on the device."""
        return mine, torch.nn.utils.get_total_norm(gradients)

    def _clip(self, parameters: list[nn.Parameter], norm: Tensor, size: float, max_norm: float) -> None:
        """Scales gradients of the norm `size` (on the device: `norm`) down to max_norm."""
        # torch's factor, max_norm / (size + 1e-6), is limited to 1: no bit would change.
        if size + 1e-6 <= 0.999 * max_norm:
            return
        torch.nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)

    def tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
        """The weights themselves and the optimizer's state."""
        if self.host_states is not None:
            self.host_states.settle()
        return {"model": self._trained(model), "optimizer": optimizer_tensors(optimizer)}

    def load_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """Copies weights into the model's and gives the optimizer its state."""
        load_weights(self._trained(model), tensors["model"])
        host = self.host_states
        load_optimizer_tensors(optimizer, tensors.get("optimizer", {}), None if host is None else host.park)

    def _trained(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: parameter for name, parameter in self.named_parameters(model) if parameter.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """The loss scale."""
        return self._scale.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts the loss scale back."""
        self._scale.load_state_dict(state)

    def close(self) -> None:
        """Nothing to release."""
