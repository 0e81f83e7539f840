"""This project in a process whose glibc keeps freed memory: a study (docs/performance.md, Beside the step), not what
users run.
"""

from __future__ import annotations

import ctypes

# From malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST = 2**31 - 1


def keep_memory() -> None:
    """Large blocks come from the heap and the heap is never given back, so that its pages are faulted in once.

    Raises:
        RuntimeError: the C library refuses.
    """
    libc = ctypes.CDLL("libc.so.6")
    for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        if libc.mallopt(option, LARGEST) != 1:
            raise RuntimeError(f"mallopt({option}, {LARGEST}) was refused")


if __name__ == "__main__":
    keep_memory()
    from benchmarks.workers.ours import main

    main()
