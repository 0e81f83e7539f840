"""The C library's heap of a process that runs for days and holds little."""

from __future__ import annotations

import sys

# glibc's numbers of mallopt, and bytes from which a block is a mapping of its own.
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
_OWN_MAPPING = 128 << 10


def give_back() -> None:
    """Lets freed blocks go back to the operating system: one heap for all threads, and large blocks as mappings of their
    own, however often such blocks were freed before. Does nothing where the C library is not glibc.

    To be called before the process has threads. A training keeps what it frees (docs/decisions/0023).
    """
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    library = ctypes.CDLL(None)
    # ctypes looks a symbol up when its name is asked for, and has no other question for whether there is one.
    if hasattr(library, "mallopt"):
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)
