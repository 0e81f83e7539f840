"""glibc's allocator during a run on a CPU: memory that a step has freed stays with the process, for the next step."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator

# Of mallopt(), from glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
# Never give the end of the heap back, and take no large block from outside of it.
_KEPT = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0))
# What glibc's own thresholds come to in a process that has freed large blocks, and its number of those.
_USUAL = ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_MMAP_MAX, 65536))


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside the block large tensors come from a heap that is not given back, so that a step finds the pages of the one
    before: a page that the system hands out anew costs a fault, and every step had tens of thousands of them
    (docs/decisions/0178). Behind the block all that is free goes back.

    Does nothing under another C library than glibc, nor where the user has set its allocator (MALLOC_*, GLIBC_TUNABLES), or
    another one (LD_PRELOAD).
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    for option, value in _KEPT:
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL:
            libc.mallopt(option, value)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    told = [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD")]
    if sys.platform != "linux" or told:
        return None
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return None
    libc.malloc_trim.argtypes = (ctypes.c_size_t,)
    return libc
