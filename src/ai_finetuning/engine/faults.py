"""Faults on purpose, for tests: AIFT_FAULT="save:kill@20#2,step:nan@5x3,step:oom@3x2".

The variable is read once, where a process begins its run; from there a `Faults` object is handed to whatever can fail.

Each entry is POINT:ACTION@STEP, with #K for the K-th time that the point is met there, xN for N occurrences, and %R for
rank R only. Points: `step` (before the forward pass), `save` (before each file of a checkpoint), `best` (before each
file of the best weights), `rename` (before a checkpoint gets its name), `rotate` (before old ones go), `final` (before
the model is put in place), `eval` (before an evaluation). Actions: `kill` (SIGKILL to oneself), `oom`, `nan`, `spike`,
`full` (ENOSPC), `slow` (the disk takes a second), `error` (ValueError, as a library raises one), `hang` (for an hour),
`term`, `usr1` and `int` (signals to oneself).
"""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..parallel.processes import launched

_ENTRY = re.compile(
    r"^(?P<point>\w+):(?P<action>\w+)@(?P<step>\d+)(#(?P<nth>\d+))?(x(?P<times>\d+))?(%(?P<rank>\d+))?$"
)


@dataclass
class Fault:
    """One planned fault."""

    point: str
    action: str
    step: int
    skip: int
    times: int


class Faults:
    """The faults that are planned for one run in one process; without any, nothing ever happens."""

    def __init__(self, planned: Iterable[Fault] = ()) -> None:
        self._planned = list(planned)

    @classmethod
    def from_environment(cls) -> Faults:
        """Those of AIFT_FAULT that concern this process's rank.

        Raises:
            ValueError: an entry that is not written as above.
        """
        return cls(_parse(os.environ.get("AIFT_FAULT", ""), launched().rank))

    def inject(self, point: str, step: int) -> str | None:
        """Lets a planned fault happen here; returns `nan` or `spike` for the caller to apply to its loss."""
        happened = None
        for fault in self._planned:
            consecutive = fault.action in ("nan", "spike")
            due = fault.step <= step if consecutive else fault.step == step
            if fault.point != point or fault.times <= 0 or not due:
                continue
            if fault.skip:
                fault.skip -= 1
                continue
            fault.times -= 1
            happened = _happen(fault.action, point, step) or happened
        return happened


def _parse(text: str, rank: int) -> list[Fault]:
    faults = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _ENTRY.match(entry)
        if match is None:
            raise ValueError(f"AIFT_FAULT entry {entry!r}; write it like save:kill@20 or step:nan@5x3")
        if match["rank"] is not None and int(match["rank"]) != rank:
            continue
        skip, times = int(match["nth"] or 1) - 1, int(match["times"] or 1)
        faults.append(Fault(match["point"], match["action"], int(match["step"]), skip, times))
    return faults


def _happen(action: str, point: str, step: int) -> str | None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "oom":
        raise torch.OutOfMemoryError(f"injected at {point} of step {step}")
    elif action == "full":
        raise OSError(errno.ENOSPC, "No space left on device (injected)")
    elif action == "error":
        raise ValueError(f"injected at {point}")
    elif action == "slow":
        time.sleep(1)
    elif action == "hang":
        time.sleep(3600)
    elif action in ("term", "usr1", "int"):
        os.kill(os.getpid(), getattr(signal, f"SIG{action.upper()}"))
    return action if action in ("nan", "spike") else None
