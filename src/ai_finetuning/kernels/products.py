"""Who computes the fused blocks' matrix products: torch, torch in pieces of which each thread has one, or, in fp32, the
OpenBLAS that numpy brings; and whether a thread computes the attention of a head by itself.

Pieces and OpenBLAS are computed in the thread that calls them, and kernels/cpu.cpp cuts a product among torch's threads: two
libraries with threads of their own would wait for each other. Which is the fastest here, choice.py finds out.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import Reason
from . import native
from .build import why_unavailable
from .stand_in import only_allocating

TORCH, OPENBLAS, PIECES = "torch", "openblas", "pieces"
# The same with attention by heads (attention_pieces.py), and only products in pieces that gain by it (docs/decisions/0194).
# Runs that have begun without keep what they had.
TORCH_HEADS, OPENBLAS_HEADS, PIECES_HEADS = "torch+heads", "openblas+heads", "pieces+heads"
# The library of each way, its attention by heads, and the least side of a product that it takes.
_WAYS = {
    TORCH: (TORCH, False, 0),
    OPENBLAS: (OPENBLAS, False, 0),
    PIECES: (PIECES, True, 0),
    TORCH_HEADS: (TORCH, True, 0),
    OPENBLAS_HEADS: (OPENBLAS, True, 0),
    PIECES_HEADS: (PIECES, True, 512),
}
NAMES = tuple(_WAYS)
_IN_PIECES = Reason("行列積はスレッドごと", "products in pieces, one a thread")
_BY_OPENBLAS = Reason("行列積は OpenBLAS", "products by OpenBLAS")
# What messages call them.
LABELS = {
    TORCH: None,
    OPENBLAS: _BY_OPENBLAS,
    PIECES: _IN_PIECES,
    TORCH_HEADS: Reason("アテンションはヘッドごと", "attention by heads"),
    OPENBLAS_HEADS: _BY_OPENBLAS,
    PIECES_HEADS: _IN_PIECES,
}
# What rows are rounded up to where products are computed in pieces, and multiplications below which one piece is enough.
_ROUNDED, _SMALL = 32, 1 << 18


@dataclass(frozen=True)
class _OpenBlas:
    """numpy's OpenBLAS: the address of its sgemm, a version, its number of threads, and what that was at first."""

    sgemm: int
    version: str
    set_threads: Callable[[int], None]
    threads: Callable[[], int]
    before: int


@lru_cache(maxsize=1)
def _openblas() -> _OpenBlas | None:
    """None where numpy was not installed from a wheel with OpenBLAS (conda's MKL, a Mac's Accelerate)."""
    for path in sorted((Path(np.__file__).parent.parent / "numpy.libs").glob("libscipy_openblas64_*.so")):
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(str(path))
            library.scipy_openblas_get_config64_.restype = ctypes.c_char_p
            address = ctypes.cast(library.scipy_cblas_sgemm64_, ctypes.c_void_p).value
            if address is not None:
                version = library.scipy_openblas_get_config64_().decode()
                setting, getting = library.scipy_openblas_set_num_threads64_, library.scipy_openblas_get_num_threads64_
                return _OpenBlas(address, version, setting, getting, int(getting()))
    return None


def openblas_version() -> str | None:
    """None where there is none."""
    library = _openblas()
    return None if library is None else library.version


def why_not_openblas() -> Reason | None:
    """None where OpenBLAS can compute products here, else the reason in a few words."""
    if _openblas() is None:
        return Reason("numpy に OpenBLAS が入っていません", "numpy comes without OpenBLAS")
    return why_unavailable(torch.device("cpu"), torch.float32)


def why_no_pieces(dtype: torch.dtype) -> Reason | None:
    """None where threads can compute torch's products by themselves here, in pieces or for attention, else the reason in a few
    words.
    """
    if not native.calls_torch(dtype):
        version = str(torch.__version__)
        return Reason(f"torch {version} に必要な関数がありません", f"torch {version} lacks the functions for it")
    return why_unavailable(torch.device("cpu"), dtype)


def why_not_here(name: str, dtype: torch.dtype) -> Reason | None:
    """None where a way can compute here, else the reason in a few words."""
    library, heads, _ = _WAYS[name]
    if library == OPENBLAS and (why := why_not_openblas()) is not None:
        return why
    return why_no_pieces(dtype) if heads else None


def release() -> None:
    """numpy computes with as many threads again as it had before the first product."""
    if _openblas.cache_info().currsize and (library := _openblas()) is not None:
        library.set_threads(library.before)


@dataclass(frozen=True)
class Products:
    """Products of matrices by one way; what it does not take (another type, a thin one, no data) is torch's."""

    name: str = TORCH

    @cached_property
    def library(self) -> str:
        """torch, OpenBLAS, or torch in pieces."""
        return _WAYS[self.name][0]

    @property
    def by_heads(self) -> bool:
        """Whether attention is computed by heads, each in one thread."""
        return _WAYS[self.name][1]

    @cached_property
    def _least(self) -> int:
        return _WAYS[self.name][2]

    def same_shapes(self, rows: Tensor, most: int) -> Tensor:
        """Rows of the head, with zeros behind them, up to `most` in all, that give similar numbers of rows the same shapes."""
        more = min(rounded(len(rows)), most) - len(rows) if self.name == PIECES_HEADS else 0
        return torch.nn.functional.pad(rows, (0, 0, 0, more)) if more else rows

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """a b."""
        if not self._takes(a, b):
            return torch.mm(a, b)
        return self._into(a.new_empty(a.shape[0], b.shape[1]), a, b, 1.0, 0.0)

    def add(self, out: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
        """out += alpha a b, in place."""
        return self._into(out, a, b, alpha, 1.0) if self._takes(a, b) else out.addmm_(a, b, alpha=alpha)

    def sum(self, first: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """first + a b."""
        return self.add(first.clone(), a, b) if self._takes(a, b) else torch.addmm(first, a, b)

    def _takes(self, a: Tensor, b: Tensor) -> bool:
        if self.library == TORCH or only_allocating():
            return False
        if self.library == PIECES:
            return bool(min(*a.shape, b.shape[1]) >= self._least)
        return a.dtype is torch.float32

    def _into(self, out: Tensor, a: Tensor, b: Tensor, alpha: float, beta: float) -> Tensor:
        if self.library == PIECES:
            pieces = _pieces(out.shape[0], out.shape[1], a.shape[1], torch.get_num_threads())
            return native.product_in_pieces(a, b, out, alpha=alpha, beta=beta, pieces=pieces)
        library = _openblas()
        assert library is not None
        if library.threads() != 1:  # the first product, or numpy's user has set another number since
            library.set_threads(1)
        return native.product(library.sgemm, a, b, out, alpha=alpha, beta=beta)


def products_of(cast: object) -> Products:
    """The products that belong to what casts the weights (models/fused.py); torch's where it names none."""
    obtained = getattr(cast, "products", None)
    return obtained if isinstance(obtained, Products) else Products()


def rounded(rows: int) -> int:
    """Rows with the padding that gives similar numbers of them the same shapes."""
    return -(-rows // _ROUNDED) * _ROUNDED


@lru_cache(maxsize=1024)
def _pieces(m: int, n: int, k: int, threads: int) -> tuple[int, int]:
    """How many pieces a product [m, k] [k, n] has down and across: all threads work, and each reads as little as it can."""
    if m * n * k < _SMALL:
        return 1, 1
    pairs = [(down, threads // down) for down in range(1, threads + 1) if threads % down == 0]
    return min(pairs, key=lambda pair: m / pair[0] + n / pair[1])
