"""What a forward pass saves for its backward pass, in the host's memory meanwhile (docs/decisions/0118)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from ._upstream import base_of, is_cast_of_a_parameter, is_plain, version_of
from .lane import Lane, Mark
from .limits import OFFLOAD_AHEAD

# Less than this is not worth a copy of its own.
MIN_BYTES = 2**20


class _Kept:
    """One storage that was saved.

    Attributes:
        place: among all, in their order.
        host: its bytes.
        data: its bytes on the device, while they are there.
        mark: behind the copy that is going on.
        uses: saved tensors that lie in it and are still to be read.
    """

    def __init__(self, place: int, data: Tensor, host: Tensor, mark: Mark) -> None:
        self.place, self.host, self.mark, self.uses = place, host, mark, 0
        self.data: Tensor | None = data

    def drop(self) -> None:
        """Off the device, from the end of its copy on."""
        self.mark.hold()
        self.data = None

    def fetch(self, lane: Lane) -> Tensor:
        """On the device, maybe not yet (mark)."""
        if self.data is None:
            self.data, self.mark = lane.back(self.host)
        return self.data


@dataclass(frozen=True)
class _Saved:
    """A tensor as a view of its storage: its layout, and so the choice of a kernel by it, stays the same."""

    kept: _Kept
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _reference(tensor: Tensor) -> StorageWeakRef:
    """Of a tensor's storage: as long as it lives, no other one has the same address (cdata)."""
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


class SavedActivations:
    """Around a forward pass: every large tensor that it saves goes to the host, and comes back ahead of its use.

    Copies change no bit. Where activation checkpointing is on, what layers save is what is recomputed from: their inputs.
    Weights stay, and so do their 16-bit copies, which autocast holds in any case. A storage is copied once, however many
    tensors in it are saved; the last ones are still there when the backward pass begins with them.

    Args:
        device_type: of what is moved.
        weights: plain tensors that stay whatever reads them; parameters and their views are known without.
        min_bytes: smallest storage that is moved.

    Attributes:
        moved: bytes that the last forward pass has sent to the host.
    """

    def __init__(
        self, lane: Lane, device_type: str, weights: Iterable[Tensor] = (), *, min_bytes: int = MIN_BYTES
    ) -> None:
        self._lane, self._device_type, self._min_bytes = lane, device_type, min_bytes
        self._weights = {reference.cdata: reference for reference in map(_reference, weights)}
        self._hooks: Any = None
        self.moved = 0
        self._order: list[_Kept] = []
        self._start()

    def _start(self) -> None:
        for kept in self._order:
            if kept.data is not None:  # fetched, and then not used
                kept.drop()
        # By address and version.
        self._known: dict[tuple[int, int], tuple[StorageWeakRef, _Kept]] = {}
        self._order = []
        self._leaving: deque[_Kept] = deque()

    def __enter__(self) -> SavedActivations:
        self._start()
        self.moved = 0
        self._hooks = saved_tensors_hooks(self._pack, self._unpack)
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, trace)
        self._known.clear()
        self._leaving.clear()

    def _moves(self, tensor: Tensor) -> bool:
        if not is_plain(tensor) or tensor.device.type != self._device_type:
            return False
        size = tensor.untyped_storage().nbytes()
        if size < self._min_bytes or size % tensor.element_size():
            return False
        base = base_of(tensor)
        return not isinstance(base, nn.Parameter) and not is_cast_of_a_parameter(base)

    def _pack(self, tensor: Tensor) -> Tensor | _Saved:
        if not self._moves(tensor):
            return tensor
        storage = tensor.untyped_storage()
        reference = _reference(tensor)
        if reference.cdata in self._weights:
            return tensor
        key = (reference.cdata, version_of(tensor))
        if key not in self._known:
            numbers = storage.nbytes() // tensor.element_size()
            whole = tensor.detach().as_strided((numbers,), (1,), 0).view(torch.uint8)
            kept = _Kept(len(self._order), whole, *self._lane.out(whole))
            self._known[key] = (reference, kept)
            self._order.append(kept)
            self._leaving.append(kept)
            self.moved += storage.nbytes()
            if len(self._leaving) > OFFLOAD_AHEAD:
                self._leaving.popleft().drop()
        kept = self._known[key][1]
        kept.uses += 1
        return _Saved(kept, tensor.dtype, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, saved: Tensor | _Saved) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        kept = saved.kept
        data = kept.fetch(self._lane)
        for earlier in self._order[max(0, kept.place - OFFLOAD_AHEAD) : kept.place]:
            if earlier.uses > 0:
                earlier.fetch(self._lane)
        kept.mark.hold()
        kept.uses -= 1
        if kept.uses <= 0:
            kept.data = None
        return data.view(saved.dtype).as_strided(saved.size, saved.stride, saved.offset)
