"""All checks of a machine in their order, and the record of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from ...system.collector import as_usual
from . import parity, predicted, record, several, short_memory, speed, steps
from .facts import facts
from .results import Check, Measured, Result, run_all

PARTS = ("quick", "one", "all")


def check(device: torch.device, part: str, report: Callable[[Result], None]) -> dict[str, Any]:
    """Runs the checks, keeps their record and returns it.

    Args:
        part: `quick` (facts and kernels), `one` (of one device: whole steps, memory and speed too) or `all` (the strategies
            over several too).
        report: is told each result as it is there.
    """
    results: list[Result] = []

    def note(checks: Iterable[Check]) -> None:
        for result in run_all(checks):
            results.append(result)
            report(result)

    as_usual()  # what is measured here is what a run meets
    calibration = predicted.calibrate(device)  # before anything else uses the GPU
    known = facts(device)
    note(parity.checks(device, quick=part == "quick"))
    more: dict[str, Any] = {}
    # Kept already: the runs below are trainings on this device, and the first on an unknown GPU would begin with a check.
    record.store(record.make(device, "quick", known, results))

    def measure() -> Measured:
        more["speed"] = speed.measure(device)
        return Measured(0.0, 0.0)

    def communicator() -> Measured:
        calibration.update(predicted.calibrate_communicator(device))
        return Measured(0.0, 0.0)

    if part != "quick":
        with tempfile.TemporaryDirectory(prefix="aift-self-check-") as folder:
            bench = steps.Bench(Path(folder), device)
            note([*steps.checks(bench), *short_memory.checks(bench)])
            note(predicted.checks(device))
            note([Check("speed", measure, may_refuse=True)])  # memory may not suffice for a model of 10^9 parameters
            if part == "all":
                note([*several.checks(bench), *several.copy_checks(device, more)])
                note([Check("memory/communicator", communicator)])
    made = record.make(device, part, known, results) | more | ({"calibration": calibration} if calibration else {})
    record.store(made)
    return made
