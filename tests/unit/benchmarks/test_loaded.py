"""The benchmark of a loaded machine runs as it says."""

from __future__ import annotations

from benchmarks.loaded import WARM_UP, busy_processes, speed


def test_a_run_tells_its_speed_and_busy_processes_end():
    with busy_processes(1):
        assert speed("passive", 1, steps=WARM_UP + 1) > 0
