"""Which process a run is: its number alone may be another program's by now."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

# Seconds by which the time of a process's creation may be told differently: it is counted from the machine's start,
# whose time the kernel rounds.
_SAME = 2.0
_LARGEST_PID = 2**31
_LATEST = 1e11  # some 3,000 years


def identity(pid: int | None = None) -> dict[str, Any]:
    """A process as run.json names it: number, host, and when it was created (seconds since 1970; None where nobody
    tells).

    Args:
        pid: None is this process.
    """
    pid = os.getpid() if pid is None else pid
    try:
        created: float | None = round(psutil.Process(pid).create_time(), 2)
    except psutil.Error:
        created = None
    return {"pid": pid, "host": socket.gethostname(), "created": created}


def time_of(value: object) -> float | None:
    """Seconds since 1970, where a value of a file of anybody's is such a number; NaN and what no clock reaches are none."""
    return float(value) if isinstance(value, int | float) and 0 <= value < _LATEST else None


def is_here(values: Mapping[str, Any]) -> bool:
    """Whether a process that `identity` has named is, or was, one of this PC."""
    return values.get("host") == socket.gethostname()


def process_of(values: Mapping[str, Any]) -> psutil.Process | None:
    """The process that `identity` has named, while it is at work on this PC; one that ended and that nobody has waited
    for is not at work.

    Args:
        values: with pid, host and, in files of later versions, created.
    """
    pid = values.get("pid")
    if not is_here(values) or not isinstance(pid, int) or not 0 < pid < _LARGEST_PID:
        return None
    try:
        process = psutil.Process(pid)
        if process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        created = time_of(values.get("created"))
        if created is None and values.get("created") is not None:
            return None
        if created is not None and abs(process.create_time() - created) > _SAME:
            return None
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:  # of another user, on a system that tells nothing of it
        return process
    return process


def is_alive(values: Mapping[str, Any]) -> bool:
    """Whether that process is at work on this PC."""
    return process_of(values) is not None
