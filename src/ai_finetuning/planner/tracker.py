"""Bytes that tensors hold while something runs, by phase: the same for real tensors and for those without data."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..kernels.stand_in import grouped_product, only_allocating
from ._upstream import NEEDS_DATA, DispatchMode, resizes_reported
from .allocator import CachingAllocator
from .declared import is_declared
from .phases import PHASES, Moment

# The place of what waits in the host's memory, which is not counted.
HOST = "host"


@dataclass
class Held:
    """The bytes of one device.

    Attributes:
        allocator: told of every allocation, where what is reserved is asked for too.
        live: bytes that live now.
        peaks: the most in each moment.
    """

    allocator: CachingAllocator | None = None
    live: int = 0
    peaks: dict[Moment, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """The most that ever lived."""
        return max(self.peaks.values(), default=0)

    def by_phase(self) -> dict[str, int]:
        """The most in each phase that there was."""
        found = {moment.phase for moment in self.peaks}
        return {
            phase: max(size for moment, size in self.peaks.items() if moment.phase == phase)
            for phase in PHASES
            if phase in found
        }

    def grew(self, moment: Moment) -> None:
        """Notes what lives now."""
        if self.live > self.peaks.get(moment, -1):
            self.peaks[moment] = self.live


def _one_device(_: Tensor) -> Hashable:
    return ""


class Tracker(DispatchMode):
    """Follows every storage that an operation gives, until it is freed, and notes the most that lived in each moment.

    A storage counts once, whatever views of it there are. Of a tensor that stands for others (a DTensor) the parts are
    counted. What kernels take and give back inside of one operation is not seen.

    Args:
        allocator: makes the model of a device's allocator, where what is reserved is asked for too.
        device_of: names the device of a tensor, where there are several; HOST is none.

    Attributes:
        devices: what each device holds, by its name; a single one has the name "".
        full_masks: whether a mask without data is taken to be true everywhere, as it is of rows without padding.
        unknown: operations of kernels that are not declared (planner/declared.py), whose bytes may be wrong.
    """

    def __init__(
        self,
        allocator: Callable[[], CachingAllocator] | None = None,
        device_of: Callable[[Tensor], Hashable] = _one_device,
    ) -> None:
        super().__init__()
        self._allocator, self._device_of = allocator, device_of
        self._storages: dict[int, tuple[weakref.ref[Any], int, Hashable]] = {}
        self._moment = Moment("load")
        self._only: str | None = None
        self._on_host = False
        self._stack = contextlib.ExitStack()
        self.devices: dict[Hashable, Held] = {}
        self.full_masks = False
        self.unknown: set[str] = set()

    def __enter__(self) -> Any:
        self._stack.enter_context(resizes_reported(self._note_resized))
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._stack.close()
        return super().__exit__(*error)

    def at(self, phase: str, part: str = "") -> None:
        """Another moment begins, with what lives now."""
        if self._only is not None:
            phase, part = self._only, ""
        self._moment = Moment(phase, part)
        for held in self.devices.values():
            held.grew(self._moment)

    @contextlib.contextmanager
    def only(self, phase: str) -> Iterator[None]:
        """All that happens inside belongs to one phase, whatever its parts are called; the next one has to be named."""
        self._only = phase
        try:
            self.at(phase)
            yield
        finally:
            self._only = None

    @contextlib.contextmanager
    def on_host(self) -> Iterator[None]:
        """What is made inside lies in the host's memory, where a device is meant to hold the rest."""
        self._on_host = True
        try:
            yield
        finally:
            self._on_host = False

    @property
    def moment(self) -> Moment:
        """Where the step is."""
        return self._moment

    @property
    def live(self) -> int:
        """Bytes that live now, on all devices."""
        return sum(held.live for held in self.devices.values())

    @property
    def peak(self) -> int:
        """The most that ever lived on a device."""
        return max((held.peak for held in self.devices.values()), default=0)

    def by_phase(self) -> dict[str, int]:
        """The most in each phase that there was, of the only device."""
        (held,) = self.devices.values()
        return held.by_phase()

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were made before."""
        for tensor in tensors:
            self._note(tensor)

    def forget_peaks(self) -> None:
        """Only what comes from now on counts, beside what lives: a real run loads each process's part alone."""
        for held in self.devices.values():
            held.peaks = {}
            if held.allocator is not None:
                held.allocator.forget_free()
            held.grew(self._moment)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own operations on the parts come back here
        try:
            if func.name() == "aten::_grouped_mm" and only_allocating():
                obtained = grouped_product(*args, **kwargs or {})
            else:
                obtained = func(*args, **(kwargs or {}))
        except NEEDS_DATA:
            obtained = self._worst_case(func.name(), args[0])
        if not is_declared(func.namespace, func.name()):
            self.unknown.add(func.name())
        self._note(obtained)
        return obtained

    def _worst_case(self, name: str, tensor: Tensor) -> Any:
        """An answer that depends on data: a number that the host reads (every loss is finite), all of some positions."""
        if name == "aten::_local_scalar_dense":
            if tensor.dtype is torch.bool:
                return self.full_masks
            return 1.0 if tensor.dtype.is_floating_point else 1
        if name == "aten::nonzero":
            return tensor.new_empty(tensor.numel(), tensor.ndim, dtype=torch.int64)
        if name == "aten::equal":
            return False
        raise NotImplementedError(f"no worst case of {name}")

    def _note(self, obtained: Any) -> None:
        if isinstance(obtained, Tensor):
            inner = obtained.to_local() if isinstance(obtained, DTensor) else obtained
            if inner.layout is torch.strided:
                self._note_storage(inner)
        elif isinstance(obtained, list | tuple):
            for item in obtained:
                self._note(item)

    def _note_storage(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        known = self._storages.get(id(storage))
        if known is not None and known[0]() is storage:
            self._note_resized(storage)
        else:
            self._count(storage, HOST if self._on_host else self._device_of(tensor))

    def _note_resized(self, storage: torch.UntypedStorage) -> None:
        """A storage that is known may have another size; it stays on its device."""
        known = self._storages.get(id(storage))
        if known is None or known[0]() is not storage:
            self._count(storage, "")
        elif known[1] != storage.nbytes():
            self._release(id(storage), known[0])
            self._count(storage, known[2])

    def _count(self, storage: torch.UntypedStorage, device: Hashable) -> None:
        key, size = id(storage), storage.nbytes()
        self._storages[key] = weakref.ref(storage, lambda gone: self._release(key, gone)), size, device
        if not size or device == HOST:
            return
        if device not in self.devices:
            self.devices[device] = Held(self._allocator() if self._allocator is not None else None)
        held = self.devices[device]
        held.live += size
        if held.allocator is not None:
            held.allocator.allocate(key, size)
        held.grew(self._moment)

    def _release(self, key: int, gone: weakref.ref[Any]) -> None:
        known = self._storages.get(key)
        if known is None or known[0] is not gone:
            return
        del self._storages[key]
        held = self.devices.get(known[2])
        if held is None:  # the host's
            return
        held.live -= known[1]
        if held.allocator is not None:
            held.allocator.free(key)
