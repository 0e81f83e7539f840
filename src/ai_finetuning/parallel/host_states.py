"""The optimizer's state in the host's memory between updates, and on the device a part at a time (docs/decisions/0118)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .lane import Lane, Mark
from .limits import OFFLOAD_CHUNK_BYTES

# Smaller ones stay on the device: there are many, and they take little.
MIN_BYTES = 2**16


class HostStates:
    """Steps an optimizer part by part, each with its state fetched from the host and sent back.

    An update of a weight reads nothing of other weights, so that parts give the bits of the whole.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        lane: Lane,
        *,
        min_bytes: int = MIN_BYTES,
        chunk_bytes: int = OFFLOAD_CHUNK_BYTES,
    ) -> None:
        self._optimizer, self._lane = optimizer, lane
        self._min_bytes, self._chunk_bytes = min_bytes, chunk_bytes
        self._last: Mark | None = None
        self._homes: dict[tuple[nn.Parameter, str], Tensor] = {}

    def park(self, parameter: nn.Parameter) -> None:
        """The large tensors of a weight's state, from the device to the host."""
        state = self._optimizer.state[parameter]
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.nbytes < self._min_bytes:
                continue
            home = self._homes.get((parameter, name))
            if value is not home:
                state[name], mark = self._lane.out(value, home)
                self._homes[parameter, name] = state[name]
                mark.wait()

    def settle(self) -> None:
        """Waits until the host has the state of the last update."""
        if self._last is not None:
            self._last.wait()

    def step(self) -> None:
        """One update of all weights that have a gradient."""
        gradients = {parameter: parameter.grad for parameter in self._weights() if parameter.grad is not None}
        parts = self._parts(list(gradients))
        for parameter in gradients:
            parameter.grad = None
        leaving: list[tuple[Tensor, Mark]] = []
        fetched = self._fetched(parts[0]) if parts else {}
        for number, part in enumerate(parts):
            here, fetched = fetched, self._fetched(parts[number + 1]) if number + 1 < len(parts) else {}
            at_home = self._put(here)
            for parameter in part:
                parameter.grad = gradients[parameter]
            self._optimizer.step()
            for parameter in part:
                parameter.grad = None
            for _, mark in leaving:  # of the part before: its memory is used again from here on
                mark.hold()
            leaving = self._sent(at_home)
            for parameter in part:
                self.park(parameter)  # what this update has made
        for _, mark in leaving:
            mark.hold()
        for parameter, gradient in gradients.items():
            parameter.grad = gradient

    def _weights(self) -> list[nn.Parameter]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _parts(self, parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
        """The weights in parts whose states are about as large as a chunk."""
        parts: list[list[nn.Parameter]] = []
        size = self._chunk_bytes
        for parameter in parameters:
            if size >= self._chunk_bytes:
                parts.append([])
                size = 0
            parts[-1].append(parameter)
            size += sum(value.nbytes for _, value in self._parked_of(parameter))
        return parts

    def _parked_of(self, parameter: nn.Parameter) -> list[tuple[str, Tensor]]:
        state = self._optimizer.state.get(parameter, {})
        return [
            (name, value)
            for name, value in state.items()
            if isinstance(value, Tensor) and value is self._homes.get((parameter, name))
        ]

    def _fetched(self, part: list[nn.Parameter]) -> dict[tuple[nn.Parameter, str], tuple[Tensor, Mark]]:
        return {
            (parameter, name): self._lane.back(value)
            for parameter in part
            for name, value in self._parked_of(parameter)
        }

    def _put(
        self, fetched: dict[tuple[nn.Parameter, str], tuple[Tensor, Mark]]
    ) -> dict[tuple[nn.Parameter, str], Tensor]:
        """Puts fetched tensors into the state; returns those of the host that they stand for."""
        at_home = {}
        for (parameter, name), (data, mark) in fetched.items():
            mark.hold()
            at_home[parameter, name] = self._homes[parameter, name]
            self._optimizer.state[parameter][name] = data
        return at_home

    def _sent(self, at_home: dict[tuple[nn.Parameter, str], Tensor]) -> list[tuple[Tensor, Mark]]:
        """Sends the updated tensors to where they live; with each the mark until which it has to stay."""
        leaving = []
        for (parameter, name), host in at_home.items():
            data = self._optimizer.state[parameter][name]
            _, self._last = self._lane.out(data, host)
            self._optimizer.state[parameter][name] = host
            leaving.append((data, self._last))
        return leaving
