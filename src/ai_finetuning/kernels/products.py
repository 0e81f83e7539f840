"""Who computes the fused blocks' matrix products: torch, torch in pieces of which each thread has one, or, in fp32, the
OpenBLAS that numpy brings.

Pieces and OpenBLAS are computed in the thread that calls them, and kernels/cpu.cpp cuts a product among torch's threads: two
libraries with threads of their own would wait for each other. Which is the fastest here, choice.py finds out.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import Reason
from . import native
from .build import why_unavailable
from .stand_in import only_allocating

TORCH, OPENBLAS, PIECES = "torch", "openblas", "pieces"
NAMES = (TORCH, OPENBLAS, PIECES)
# What messages call them.
LABELS = {
    TORCH: None,
    OPENBLAS: Reason("行列積は OpenBLAS", "products by OpenBLAS"),
    PIECES: Reason("行列積はスレッドごと", "products in pieces, one a thread"),
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
    """None where torch's products can be computed in pieces here, else the reason in a few words."""
    if not native.calls_torch(dtype):
        version = str(torch.__version__)
        return Reason(f"torch {version} に必要な関数がありません", f"torch {version} lacks the functions for it")
    return why_unavailable(torch.device("cpu"), dtype)


def release() -> None:
    """numpy computes with as many threads again as it had before the first product."""
    if _openblas.cache_info().currsize and (library := _openblas()) is not None:
        library.set_threads(library.before)


@dataclass(frozen=True)
class Products:
    """Products of matrices by one library; what it cannot take (another type, no data) is torch's."""

    name: str = TORCH

    def mm(self, a: Tensor, b: Tensor) -> Tensor:
        """a b."""
        if not self._takes(a):
            return torch.mm(a, b)
        return self._into(a.new_empty(a.shape[0], b.shape[1]), a, b, 1.0, 0.0)

    def add(self, out: Tensor, a: Tensor, b: Tensor, alpha: float = 1.0) -> Tensor:
        """out += alpha a b, in place."""
        return self._into(out, a, b, alpha, 1.0) if self._takes(a) else out.addmm_(a, b, alpha=alpha)

    def sum(self, first: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """first + a b."""
        return self.add(first.clone(), a, b) if self._takes(a) else torch.addmm(first, a, b)

    def _takes(self, a: Tensor) -> bool:
        if only_allocating():
            return False
        return self.name == PIECES or (self.name == OPENBLAS and a.dtype is torch.float32)

    def _into(self, out: Tensor, a: Tensor, b: Tensor, alpha: float, beta: float) -> Tensor:
        if self.name == PIECES:
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
