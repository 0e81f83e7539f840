"""Tensors of a GPU into the host's memory, at the speed of the link between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

# Large enough that starting a copy costs nothing beside it.
CHUNK_BYTES = 64 * 2**20


class Queue(Protocol):
    """Copies that are done in their order, maybe later."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queues a copy."""

    def mark(self) -> Callable[[], None]:
        """What waits for all copies that are queued by now."""


class AtOnce:
    """Copies that are done when they are queued, as on a CPU."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Copies."""
        target.copy_(source)

    def mark(self) -> Callable[[], None]:
        """Nothing to wait for."""
        return lambda: None


class OnStream:
    """Copies on a stream of a GPU beside the one that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Queues a copy to pinned memory, behind all that was computed by now."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)

    def mark(self) -> Callable[[], None]:
        """An event behind them."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event.synchronize


@dataclass
class _Buffer:
    """Bytes on their way.

    Attributes:
        used: bytes of it that are taken.
        parts: (first byte, where the bytes go, from where they come, which lives until they are here).
        wait: returns when they have arrived in it.
    """

    data: Tensor
    used: int = 0
    parts: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    wait: Callable[[], None] = lambda: None

    def empty(self) -> None:
        """Hands on what is in it, once that has arrived."""
        self.wait()
        for start, target, _ in self.parts:
            target.copy_(self.data[start : start + target.numel()])
        self.forget()

    def forget(self) -> None:
        """Nothing is in it."""
        self.used, self.parts, self.wait = 0, [], lambda: None


class Staging:
    """Two buffers of pinned memory: while a GPU fills one, the host empties the other.

    A copy from a GPU into other memory goes through a small buffer of the driver, and the host waits in it, once a tensor.
    To pin all that a checkpoint holds would take memory from the machine that nothing else can use.
    """

    def __init__(self, device: torch.device, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._device = device
        pinned = device.type == "cuda"
        self._both = [_Buffer(torch.empty(chunk_bytes, dtype=torch.uint8, pin_memory=pinned)) for _ in range(2)]
        self._size = chunk_bytes

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], queue: Queue | None = None) -> None:
        """Copies (tensor of the device, contiguous tensor of the host); returns when every byte is there.

        Args:
            queue: what does the device's copies; None suits the device.
        """
        if queue is None:
            queue = OnStream(self._device) if self._device.type == "cuda" else AtOnce()
        filling, emptying = self._both
        for buffer in self._both:  # of a copy that has failed
            buffer.forget()
        for source, target in pairs:
            if not source.numel():
                continue
            given = source.detach().contiguous().view(-1).view(torch.uint8)
            wanted = target.detach().view(-1).view(torch.uint8)
            start = 0
            while start < given.numel():
                if filling.used == self._size:
                    filling.wait = queue.mark()
                    emptying.empty()
                    filling, emptying = emptying, filling
                size = min(self._size - filling.used, given.numel() - start)
                queue.copy(filling.data[filling.used : filling.used + size], given[start : start + size])
                filling.parts.append((filling.used, wanted[start : start + size], given))
                filling.used += size
                start += size
        filling.wait = queue.mark()
        emptying.empty()
        filling.empty()
