"""Rows of metrics as programs without torch read them: any part of the file, whoever has written it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..system.files import is_plain

# What counts as a number of steps, and as a loss.
_STEPS, _LOSS = 10**12, 1e9
# Rows from which the time left is told.
_WINDOW = 20


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """The rows in a part of the file; lines that are cut, or no rows, are left out."""
    rows = []
    for line in content.decode("utf-8", "replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def last_rows(file: Path, size: int = 1 << 16) -> list[dict[str, Any]]:
    """The rows in the last bytes of a file; none where it cannot be read."""
    try:
        if not is_plain(file):
            return []
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - size))
            return rows_of(stream.read())
    except OSError:
        return []


def steps_of(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of optimizer steps."""
    return [row for row in rows if loss_of(row.get("loss")) is not None and step_of(row.get("step")) is not None]


def step_of(*candidates: object) -> int | None:
    """The first that is a number of steps."""
    return next((value for value in candidates if type(value) is int and 0 <= value < _STEPS), None)


def loss_of(value: object) -> float | None:
    """A loss, where the value is one."""
    return float(value) if isinstance(value, int | float) and -_LOSS < value < _LOSS else None


def seconds_left(rows: Sequence[dict[str, Any]]) -> float | None:
    """Seconds to the last step by the last 20 rows of the process that wrote the last one; None before two of them.

    A clock that jumps changes nothing, and neither do steps of an earlier day: `seconds` of a row count from the first
    step of its process. Evaluations between those rows count as they came.
    """
    steps = [row for row in steps_of(rows) if loss_of(row.get("seconds")) is not None]
    begin = next((at for at in range(len(steps) - 1, 0, -1) if steps[at]["seconds"] < steps[at - 1]["seconds"]), 0)
    own = steps[begin:][-_WINDOW:]
    total = step_of(own[-1].get("total_steps")) if own else None
    if total is None or len(own) < 2 or own[-1]["step"] <= own[0]["step"]:
        return None
    a_step = (own[-1]["seconds"] - own[0]["seconds"]) / (own[-1]["step"] - own[0]["step"])
    return float(max(0.0, (total - own[-1]["step"]) * a_step))
