"""The benchmark of a loaded machine runs as it says."""

from __future__ import annotations

from benchmarks.loaded import WARM_UP, rates, speeds


def test_a_run_tells_its_speeds_and_busy_processes_end():
    quiet, beside = speeds("passive", 1, 1, steps=WARM_UP + 1, loaded=2)
    assert quiet > 0
    assert beside > 0


def test_a_rate_is_of_the_tokens_of_its_step():
    rows = [{"tokens": 10, "seconds": 9.0}, {"tokens": 30, "seconds": 2.0}, {"tokens": 36, "seconds": 3.0}]
    assert rates(rows) == [10.0, 2.0]
