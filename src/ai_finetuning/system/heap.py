"""The C library's heap: of a process that runs for days and holds little, and of a training that takes the same blocks at every
step.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

# glibc's numbers of mallopt, and bytes from which a block is a mapping of its own.
_FAST_BLOCKS, _TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = 1, -1, -3, -8
_OWN_MAPPING = 128 << 10
# The largest thresholds that mallopt takes, and those that glibc itself arrives at when large blocks are freed: of mappings, and
# of free memory at the end of the heap, twice as much. Before 2.35 it refuses a larger one of mappings than that.
_LARGEST = 2**31 - 1
_ARRIVED = 32 << 20
# Bytes up to which freed blocks wait unjoined, by default. Each free of a large block joins all that wait.
_WAITING = 16 * 8
# What a user sets for the heap.
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def _glibc() -> Any:
    """The C library where it is glibc, else None."""
    if not sys.platform.startswith("linux"):
        return None
    import ctypes

    library = ctypes.CDLL(None)
    # ctypes looks a symbol up when its name is asked for, and has no other question for whether there is one.
    return library if hasattr(library, "mallopt") else None


def give_back() -> None:
    """Lets freed blocks go back to the operating system: one heap for all threads, and large blocks as mappings of their
    own, however often such blocks were freed before. Does nothing where the C library is not glibc.

    To be called before the process has threads.
    """
    if (library := _glibc()) is not None:
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Keeps what is freed, large blocks as well, until the end: pages that every step would be given anew, and cleared
    (docs/decisions/0023). What the user set for the heap stays; does nothing where the C library is not glibc.
    """
    library = None if any(name in os.environ for name in _SETTINGS) else _glibc()
    if library is None:
        yield
        return
    mallopt: Callable[[int, int], int] = library.mallopt
    # Any threshold ends glibc's own way to it, so that a refused one would leave every large block a mapping.
    if not mallopt(_MMAP_THRESHOLD, _LARGEST):
        mallopt(_MMAP_THRESHOLD, _ARRIVED)
    mallopt(_TRIM_THRESHOLD, _LARGEST)
    mallopt(_FAST_BLOCKS, 0)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, _ARRIVED)
        mallopt(_TRIM_THRESHOLD, 2 * _ARRIVED)
        mallopt(_FAST_BLOCKS, _WAITING)
        library.malloc_trim(0)
