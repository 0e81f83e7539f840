"""The seam between the loop and the machine: who holds which weights, and who sees which data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .layout import Layout
from .settle import Destination
from .state import Tensors

# (model, batch) -> sum of the token losses of the batch's live labels, a scalar tensor.
LossFunction = Callable[[nn.Module, Any], Tensor]


class Strategy(Protocol):
    """One way to spread a training step; the loop knows nothing else of the machine."""

    data_rank: int
    data_size: int
    rank: int
    is_main: bool
    layouts: dict[str, Layout] | None

    @property
    def destination(self) -> Destination | None:
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

    def sum(self, value: float) -> float:
        """The sum over all data ranks."""

    def any(self, flag: bool) -> bool:
        """Whether any process says so; every process has to ask."""

    def gather(self, value: Any) -> list[Any]:
        """`value` of every process, by rank."""

    def named_parameters(self, model: nn.Module) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer works on, under global names: this process's parts, sharing the model's memory."""

    def forward_backward(self, group: Sequence[Any], num_valid: float) -> float:
        """Gradients of (sum of token losses) / num_valid over the group's micro-batches; returns that loss over all
        ranks.
        """

    def evaluate(self, batches: Sequence[Any]) -> tuple[float, int]:
        """(sum of token losses, number of label tokens) over all ranks, without gradients, in eval mode."""

    def clip_grad_norm(self, max_norm: float) -> float:
        """The global gradient norm before clipping to max_norm (0: not clipped)."""

    def step(self) -> bool:
        """The optimizer's step; False where loss scaling skipped it."""

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
