"""Time limits of tests, in seconds of a quiet machine: `patience` turns them into seconds of this one, now.

A limit ends a test that hangs. How long one that does not hang takes depends on the processor and on what else runs
beside it; so every limit of the suite goes through here, pytest's own (tests/conftest.py) too.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable

# CPU seconds of `python -c "import numpy"` on the machine that the limits were chosen on (two cores of an AMD EPYC).
_REFERENCE_START = 0.2
_PROBE_SECONDS = 0.03
_REMEMBERED_SECONDS = 10.0


def patience(seconds: float) -> float:
    """The limit that stands for this many seconds of a quiet machine; never less than they are."""
    return seconds * slowness() * crowd(int(time.monotonic() / _REMEMBERED_SECONDS))


def until(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for something.

    Raises:
        AssertionError: naming it, when it has not happened within the patience for these seconds.
    """
    began = time.monotonic()
    while not happened():
        assert time.monotonic() - began < patience(seconds), f"{what} within {patience(seconds):.0f} s"
        time.sleep(0.05)


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def slowness() -> float:
    """How many times the reference's CPU time this machine needs to start a Python process; at least 1.

    Time on the processor, so that what runs beside it counts once only, in `crowd`.
    """
    before = os.times()
    subprocess.run([sys.executable, "-c", "import numpy"], check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return max(1.0, spent / _REFERENCE_START)


@functools.lru_cache(maxsize=1)
def crowd(moment: int) -> float:
    """How many processes share a processor now; at least 1.

    The larger of two answers: the load of the last minute, which new work shows in late, and the time that a short
    loop waits, which is all there is in a container that hides the load of its neighbours.

    Args:
        moment: the answer is remembered as long as this stays the same.
    """
    load = os.getloadavg()[0] / processors() if hasattr(os, "getloadavg") else 1.0
    began, worked = time.perf_counter(), time.thread_time()
    while time.thread_time() - worked < _PROBE_SECONDS:
        pass
    return max(1.0, load, (time.perf_counter() - began) / _PROBE_SECONDS)
