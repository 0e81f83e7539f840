"""Copies between a device and the host's memory, beside what the device computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Mark(Protocol):
    """A point behind copies."""

    def hold(self) -> None:
        """The device computes on only when they are done; the host does not wait."""

    def wait(self) -> None:
        """The host waits until they are done."""


class Lane(Protocol):
    """Copies both ways, in the order in which they are asked for."""

    def out(self, data: Tensor, host: Tensor | None = None) -> tuple[Tensor, Mark]:
        """A copy in the host's memory (into `host` where it is given) of what is computed by now; `data` has to stay until
        the mark.
        """

    def back(self, host: Tensor) -> tuple[Tensor, Mark]:
        """A copy on the device, there from the mark on."""


class AtOnce:
    """Both sides are the host's memory: copies of copies, as a test does without a GPU."""

    def hold(self) -> None:
        """Done already."""

    def wait(self) -> None:
        """Done already."""

    def out(self, data: Tensor, host: Tensor | None = None) -> tuple[Tensor, Mark]:
        """A copy."""
        host = torch.empty_like(data) if host is None else host
        return host.copy_(data), self

    def back(self, host: Tensor) -> tuple[Tensor, Mark]:
        """A copy."""
        return host.clone(), self


@dataclass(frozen=True)
class _Event:
    event: torch.cuda.Event
    device: torch.device

    def hold(self) -> None:
        torch.cuda.current_stream(self.device).wait_event(self.event)

    def wait(self) -> None:
        self.event.synchronize()


class GpuLane:
    """A stream of its own, and pinned memory, which torch keeps and reuses."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def out(self, data: Tensor, host: Tensor | None = None) -> tuple[Tensor, Mark]:
        """Queues a copy into pinned memory."""
        host = torch.empty_like(data, device="cpu", pin_memory=True) if host is None else host
        return host, self._copy(data, host)

    def back(self, host: Tensor) -> tuple[Tensor, Mark]:
        """Queues a copy into memory of the stream that computes, which may have been in use until now."""
        data = torch.empty_like(host, device=self._device)
        return data, self._copy(host, data)

    def _copy(self, source: Tensor, target: Tensor) -> Mark:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            event.record(self._stream)
        return _Event(event, self._device)


def lane_for(device: torch.device) -> Lane:
    """What copies between a device and the host."""
    return GpuLane(device) if device.type == "cuda" else AtOnce()
