"""Time limits that grow with the machine's load."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from tests.support import patience

BUSY = "while True: pass"


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """This process and `count` endless loops on one processor."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
        os.sched_setaffinity(0, allowed)


def test_a_limit_is_never_less_than_its_seconds():
    assert patience.patience(10) >= 10


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="pins processes as Linux does")
def test_a_limit_grows_beside_busy_processes():
    """Of a processor that four loops use another one gets a fifth."""
    with busy(4):
        patience.until(lambda: patience.crowd.__wrapped__(0) > 2, 20, "the crowd is seen")


def test_waiting_ends_with_what_did_not_happen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(patience, "patience", lambda seconds: seconds)
    with pytest.raises(AssertionError, match=r"the end of time within 0 s"):
        patience.until(lambda: False, 0.1, "the end of time")


def test_the_limit_of_a_test_goes_through_it(request: pytest.FixtureRequest):
    marker = request.node.get_closest_marker("timeout")
    assert marker is not None
    assert marker.args[0] >= 300
