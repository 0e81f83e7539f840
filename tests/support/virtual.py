"""Several devices without one: CPU tensors carry the name of a virtual device, and an operation over two of them
raises.

`cpu:0` and `cpu:1` are one device to torch, and a build without CUDA makes no `cuda:1` tensor. So two modes share the
work: the function mode answers `tensor.device` and turns `.to("cuda:1")` and `device="cuda:1"` into CPU work with a
tag; the dispatch mode sees every operation, those of the backward pass too, and follows CUDA's rule: one device, or
0-dim CPU numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CPU = torch.device("cpu")
# Copies are how tensors legally change the device.
_COPIES = {"aten::copy_", "aten::_to_copy", "aten::_foreach_copy_"}
# CUDA tensors may be indexed by CPU tensors.
_INDEXED = {"aten::index", "aten::index_put_", "aten::index_put", "aten::_index_put_impl_"}


class MixedDevicesError(RuntimeError):
    """One operation met tensors of two devices; real ones would refuse."""


class Places:
    """Which storage lies on which virtual device."""

    def __init__(self) -> None:
        # The weak reference keeps a freed storage's address from being used again.
        self._of: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self.moves: list[tuple[torch.device, torch.device]] = []
        self._arriving: torch.device | None = None

    @contextlib.contextmanager
    def arriving(self, device: torch.device) -> Iterator[None]:
        """What is made inside lies on a device from its beginning: whoever counts bytes sees it nowhere else."""
        self._arriving = device
        try:
            yield
        finally:
            self._arriving = None

    @property
    def destination(self) -> torch.device | None:
        """Where a tensor that is being made will lie; None for where its inputs lie."""
        return self._arriving

    def of(self, tensor: Tensor) -> torch.device:
        obtained = self._of.get(tensor.untyped_storage()._cdata)
        return CPU if obtained is None else obtained[1]

    def put(self, tensor: Tensor, device: torch.device) -> None:
        storage = tensor.untyped_storage()
        self._of[storage._cdata] = (StorageWeakRef(storage), device)

    def check(self, name: str, tensors: list[Tensor]) -> torch.device | None:
        """The one device that an operation runs on, None where only the CPU is involved."""
        if name in _INDEXED:
            tensors = [tensors[0], *(t for t in tensors[1:] if self.of(t) != CPU)]
        met = {self.of(t) for t in tensors if t.dim() or self.of(t) != CPU}
        if len(met) > 1:
            raise MixedDevicesError(f"{name}: {sorted(map(str, met))}, shapes {[tuple(t.shape) for t in tensors]}")
        device = met.pop() if met else CPU
        return None if device == CPU else device


class _Move(torch.autograd.Function):
    """A copy to another device; its gradient is copied back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, device: torch.device, places: Places) -> Tensor:  # type: ignore[override]
        ctx.source, ctx.places = places.of(tensor), places
        return _moved(tensor, device, places)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        return _moved(gradient, ctx.source, ctx.places), None, None


def _moved(tensor: Tensor, device: torch.device, places: Places) -> Tensor:
    places.moves.append((places.of(tensor), device))
    with places.arriving(device):
        copy = tensor.detach().clone()
    places.put(copy, device)
    return copy


class _Functions(TorchFunctionMode):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is Tensor.device and func.__name__ == "__get__":
            return self.places.of(args[0])
        if func is Tensor.backward:
            # Hooks run again under gradient checkpointing: the mode has to be on in the backward pass.
            with self:
                return torch.autograd.backward(args[0])
        if func in (Tensor.to, Tensor.cpu):
            return self._to(*args, **kwargs) if func is Tensor.to else self._to(args[0], CPU)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            device = torch.device(kwargs.pop("device"))
            with self.places.arriving(device):
                made = func(*args, **kwargs)
            self.places.put(made, device)
            return made
        return func(*args, **kwargs)

    def _to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args and isinstance(args[0], Tensor):
            other, args = args[0], args[1:]
            return self._to(tensor, self.places.of(other), other.dtype)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(
            *args, **{key: value for key, value in kwargs.items() if key != "copy"}
        )
        if device is not None and device != self.places.of(tensor):
            tensor = _Move.apply(tensor, device, self.places)
        return tensor if dtype is None else tensor.to(dtype)


class _Operations(TorchDispatchMode):
    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        device = self.places.of(given[0]) if name in _COPIES else self.places.check(name, given)
        out = func(*args, **(kwargs or {}))
        device = self.places.destination or device
        if device is not None and device != CPU:
            known = {tensor.untyped_storage()._cdata for tensor in given}
            for made in tree_leaves(out):
                if isinstance(made, Tensor) and made.untyped_storage()._cdata not in known:
                    self.places.put(made, device)
        return out


@contextlib.contextmanager
def virtual_devices() -> Iterator[Places]:
    """Inside, `cuda:0`, `cuda:1`, ... are devices that hold CPU memory; an operation over two of them raises."""
    places = Places()
    group = torch._C._group_tensors_by_device_and_dtype

    def by_virtual_device(lists: Any, with_indices: bool = False) -> Any:
        """What fused and foreach code asks for; the build itself sees one device."""
        obtained: dict[Any, Any] = {}
        for device in {places.of(tensor) for tensor in lists[0]}:
            mine = [index for index, tensor in enumerate(lists[0]) if places.of(tensor) == device]
            parts = group(
                [[column[index] if column else None for index in mine] if column else [] for column in lists], True
            )
            for (_, dtype), (columns, indices) in parts.items():
                obtained[(device, dtype)] = (columns, [mine[index] for index in indices] if with_indices else [])
        return obtained

    torch._C._group_tensors_by_device_and_dtype = by_virtual_device
    try:
        with _Functions(places), _Operations(places):
            yield places
    finally:
        torch._C._group_tensors_by_device_and_dtype = group
