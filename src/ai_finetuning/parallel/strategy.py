"""The seam between the loop and the machine: who holds which weights, and who sees which data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .batch import Batch, LossFunction
from .host_states import HostStates
from .lane import Lane
from .weights.layout import Layout
from .weights.materialize import WeightPlacement
from .weights.state import Tensors


@dataclass(frozen=True)
class Update:
    """What became of a step's gradients; the same on every rank.

    Attributes:
        loss: over all ranks.
        grad_norm: global, before clipping.
        applied: whether the weights changed; never where loss or norm is not finite.
        scaled: an overflow is part of fp16's search for a scale, and not the model's fault.
        also: what was to be summed with the loss, over all data ranks.
    """

    loss: float
    grad_norm: float
    applied: bool
    scaled: bool = False
    also: tuple[float, ...] = ()


class Strategy(Protocol):
    """One way to spread a training step; the loop knows nothing else of the machine."""

    data_rank: int
    data_size: int
    rank: int
    is_main: bool
    layouts: dict[str, Layout] | None
    steps_optimizer: bool  # the optimizer's own step() changes the weights, and makes its state
    host_states: HostStates | None  # what holds the optimizer's state on the host
    exchanges: int  # how often this process has begun something with the others; what the watchdog compares

    @property
    def weight_placement(self) -> WeightPlacement | None:
        """Where a model that is cut goes, part by part; None: it is loaded as it trains."""

    def placement(self, *, quantized: bool) -> dict[str, Any]:
        """What loading has to know: {"device": ...} or {"device_map": ...}.

        Args:
            quantized: weights are quantized while they are loaded, on the device that keeps them.
        """

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Takes the model over; returns what the forward pass runs on."""

    def attach(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Takes the optimizer over; called once, before the first step."""

    def offload(self, what: str, lane: Lane | None = None) -> None:
        """From now on, `activations` or the `optimizer`'s state lie in the host's memory while nothing reads them (`none`:
        neither).

        Asked for after attach(); pipelines, model_parallel and DeepSpeed do not know it.

        Args:
            lane: what copies; None suits the device.
        """

    def agree(self, counts: Sequence[float], flags: Sequence[bool] = ()) -> tuple[list[float], list[bool]]:
        """Counts summed over the data ranks, and flags that any process has raised; every process has to call it.

        One reduction of one vector between the hosts; it does not wait for the devices.
        """

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, by rank."""

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer works on, under global names: this process's parts, sharing the model's memory."""

    def forward_backward(self, group: Sequence[Batch], num_valid: float) -> Tensor:
        """Gradients of (sum of token losses) / num_valid over the group's micro-batches.

        Returns:
            this process's share of that loss, a scalar that stays on the device.
        """

    def update(self, loss: Tensor, max_norm: float, also: Tensor | None = None) -> Update:
        """Clips the gradients to max_norm (0: not clipped) and lets the optimizer step.

        Nothing is updated where loss or norm is not finite on any rank. The ranks' losses are summed with their
        norms, in the same message, and the host reads both at once.

        Args:
            loss: what forward_backward() has returned.
            also: [n] fp64 on its device, summed over the data ranks and read with it.
        """

    def evaluate(self, batches: Sequence[Batch]) -> tuple[float, int]:
        """(sum of losses, number of what they are a mean over: label tokens, pairs or marked answers) over all ranks,
        without gradients, in eval mode.
        """

    def score(self, batches: Sequence[Batch]) -> None:
        """Runs the loss on this process's batches, without gradients, in eval mode: for what the loss notes on the way. Every
        process has to call it, with as many batches.
        """

    def tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensors:
        """This process's part of the trained weights and the optimizer's state, under global names; every process
        has to ask.
        """

    def load_tensors(self, model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
        """Puts tensors() back, as `layouts` cut them; without `optimizer` the weights alone."""

    def state_dict(self) -> dict[str, Any]:
        """What the strategy itself must remember (the loss scale)."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Puts state_dict() back."""

    def close(self) -> None:
        """Releases processes and devices."""
