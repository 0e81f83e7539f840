"""The benchmark of the first line measures what it says; its limits are for quiet machines and not tested here."""

from __future__ import annotations

from benchmarks.startup import measure


def test_one_round_sees_the_refusal_and_the_first_line():
    found = measure(1)
    assert float(str(found["refusal_cpu_seconds"])) > 0
    assert float(str(found["run_first_line_seconds"])) > 0
