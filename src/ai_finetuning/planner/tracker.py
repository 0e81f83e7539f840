"""Bytes that tensors hold while something runs, by phase: the same for real tensors and for those without data."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from ._upstream import NEEDS_DATA, DispatchMode, resizes_reported
from .allocator import CachingAllocator
from .declared import is_declared
from .phases import PHASES, Moment


class Tracker(DispatchMode):
    """Follows every storage that an operation gives, until it is freed, and notes the most that lived in each moment.

    A storage counts once, whatever views of it there are. Of a tensor that stands for others (a DTensor) the parts are
    counted. What kernels take and give back inside of one operation is not seen.

    Args:
        allocator: told of every allocation, where what is reserved is asked for too.

    Attributes:
        live: bytes that live now.
        peaks: the most in each moment.
        full_masks: whether a mask without data is taken to be true everywhere, as it is of rows without padding.
        unknown: operations of kernels that are not declared (planner/declared.py), whose bytes may be wrong.
    """

    def __init__(self, allocator: CachingAllocator | None = None) -> None:
        super().__init__()
        self._allocator = allocator
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._moment = Moment("load")
        self._stack = contextlib.ExitStack()
        self.live = 0
        self.peaks: dict[Moment, int] = {}
        self.full_masks = False
        self.unknown: set[str] = set()

    def __enter__(self) -> Any:
        self._stack.enter_context(resizes_reported(self._note_storage))
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        self._stack.close()
        return super().__exit__(*error)

    def at(self, phase: str, part: str = "") -> None:
        """Another moment begins, with what lives now."""
        self._moment = Moment(phase, part)
        self._grew()

    @property
    def moment(self) -> Moment:
        """Where the step is."""
        return self._moment

    @property
    def peak(self) -> int:
        """The most that ever lived."""
        return max(self.peaks.values(), default=0)

    def by_phase(self) -> dict[str, int]:
        """The most in each phase that there was."""
        return {
            phase: max(size for moment, size in self.peaks.items() if moment.phase == phase)
            for phase in PHASES
            if any(moment.phase == phase for moment in self.peaks)
        }

    def hold(self, tensors: Iterable[Tensor]) -> None:
        """Counts tensors that were made before."""
        for tensor in tensors:
            self._note(tensor)

    def forget_peaks(self) -> None:
        """Only what comes from now on counts, beside what lives: a real run loads each process's part alone."""
        self.peaks = {}
        if self._allocator is not None:
            self._allocator.forget_free()
        self._grew()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # its own operations on the parts come back here
        try:
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
                self._note_storage(inner.untyped_storage())
        elif isinstance(obtained, list | tuple):
            for item in obtained:
                self._note(item)

    def _note_storage(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        held = self._held.get(key)
        if held is not None and held[0]() is storage:
            if held[1] == size:
                return
            self._release(key, held[0])
        if size:
            self._held[key] = weakref.ref(storage, lambda gone: self._release(key, gone)), size
            self.live += size
            if self._allocator is not None:
                self._allocator.allocate(key, size)
            self._grew()

    def _release(self, key: int, gone: weakref.ref[Any]) -> None:
        held = self._held.get(key)
        if held is None or held[0] is not gone:
            return
        del self._held[key]
        self.live -= held[1]
        if self._allocator is not None:
            self._allocator.free(key)

    def _grew(self) -> None:
        if self.live > self.peaks.get(self._moment, -1):
            self.peaks[self._moment] = self.live
