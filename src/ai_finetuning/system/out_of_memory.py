"""What to do where memory runs out: the same work on smaller batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import OutOfMemoryError
from .gpu import clear_gpu_memory, is_out_of_memory

T = TypeVar("T")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def with_smaller_batches(work: Callable[[int], T], size: int, on_halved: Callable[[int, str], None]) -> T:
    """What `work(size)` gives; each time that memory runs out the size is halved, and the work is done again.

    Args:
        work: does the whole work in batches of a number of rows.
        size: rows to begin with.
        on_halved: called with the new size and the reason; memory is released afterwards, before the next attempt.

    Raises:
        RuntimeError, MemoryError: any other error of the work, or one row does not fit in memory.
        OutOfMemoryError: the work says itself that smaller batches do not help.
    """
    while True:
        try:
            return work(size)
        except OutOfMemoryError:
            raise
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not is_out_of_memory(error):
                raise
            reason = first_line(error)
        # Outside the except block, so that the traceback no longer holds the tensors of the failed attempt.
        size //= 2
        on_halved(size, reason)
        clear_gpu_memory()
