"""Which library computes the fused blocks' matrix products in fp32: torch's own, or the OpenBLAS that numpy brings.

OpenBLAS computes in the thread that calls it, and kernels/cpu.cpp cuts a product among torch's threads: two libraries
with threads of their own would wait for each other. A short trial on the shapes of a model says which is faster on this
processor; its answer is kept, because a trial in every run would let the bits of a run depend on what else the machine
was doing.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from ..errors import Reason
from ..system.files import is_private, read_bounded, replacing
from ..system.folders import private_cache
from . import native
from .build import processor, why_unavailable
from .stand_in import only_allocating

TORCH, OPENBLAS = "torch", "openblas"
NAMES = (TORCH, OPENBLAS)
# CPU time of torch's products over OpenBLAS's from which on these are taken.
_WORTH = 1.03
# Pairs of a trial, its rows, the longest side of a weight in it, and the side from which on a model is tried: the narrow
# ones spend their time on calls.
_PAIRS, _ROWS, _LONGEST, _WIDE = 5, 256, 2048, 512


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


def why_not_openblas() -> Reason | None:
    """None where OpenBLAS can compute products here, else the reason in a few words."""
    if _openblas() is None:
        return Reason("numpy に OpenBLAS が入っていません", "numpy comes without OpenBLAS")
    return why_unavailable(torch.device("cpu"), torch.float32)


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
        return self.name == OPENBLAS and a.dtype is torch.float32 and not only_allocating()

    def _into(self, out: Tensor, a: Tensor, b: Tensor, alpha: float, beta: float) -> Tensor:
        library = _openblas()
        assert library is not None
        if library.threads() != 1:  # the first product, or numpy's user has set another number since
            library.set_threads(1)
        return native.product(library.sgemm, a, b, out, alpha=alpha, beta=beta)


def products_of(cast: object) -> Products:
    """The products that belong to what casts the weights (models/fused.py); torch's where it names none."""
    obtained = getattr(cast, "products", None)
    return obtained if isinstance(obtained, Products) else Products()


def chosen_products(shapes: Sequence[tuple[int, int]]) -> str:
    """The library that computes linear layers of these shapes (outputs, inputs) in less CPU time here, as it was found
    once for this processor, these versions and this number of threads; torch where the answer cannot be kept.
    """
    library = _openblas()
    if library is None or max(map(min, shapes), default=0) < _WIDE or why_not_openblas() is not None:
        return TORCH
    tried = sorted({(min(outputs, _LONGEST), min(inputs, _LONGEST)) for outputs, inputs in shapes})
    known = [processor(), torch.__version__, np.__version__, library.version, torch.get_num_threads(), tried]
    entry = private_cache("products") / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.json"
    if (kept := _kept(entry)) is not None:
        return kept
    faster = _times_faster(tried)
    release()
    if (kept := _kept(entry)) is not None:  # by a process that began beside this one
        return kept
    obtained = OPENBLAS if faster >= _WORTH else TORCH
    with contextlib.suppress(OSError), replacing(entry, mode=0o600) as file:
        file.write(json.dumps({"library": obtained, "faster": round(faster, 3)}).encode())
    return _kept(entry) or TORCH


def _kept(entry: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if is_private(entry) and (kept := json.loads(read_bounded(entry, 10_000))["library"]) in NAMES:
            return str(kept)
    return None


def _times_faster(shapes: Sequence[tuple[int, int]]) -> float:
    """CPU time of torch over OpenBLAS on a pass forward and back through layers of these shapes: the median of pairs.
    CPU time, because other processes take wall time from both.
    """
    generator = torch.Generator().manual_seed(0)
    layers = [
        (torch.randn(_ROWS, inputs, generator=generator), torch.randn(outputs, inputs, generator=generator))
        for outputs, inputs in shapes
    ]
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(_PAIRS + 1):
        for name in NAMES:
            products, began = Products(name), time.process_time()
            for x, weight in layers:
                products.mm(products.mm(x, weight.t()), weight)
            times[name].append(time.process_time() - began)
    return median(one / max(other, 1e-9) for one, other in list(zip(times[TORCH], times[OPENBLAS], strict=True))[1:])
