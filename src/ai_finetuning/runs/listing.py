"""The runs near a folder, newest first, by what their files say. Nothing is locked or changed; needs no torch."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import psutil

from ..config.run_folder import METRICS, RUN
from .folder import read_run

# Where runs go by default, beside those in the folder itself.
OUTPUTS = "outputs"
# Folders that are looked into at one place, and bytes at the end of a run's metrics.
_FOLDERS, _TAIL = 1000, 1 << 16

Status = Literal["completed", "running", "stopped"]


@dataclass(frozen=True)
class RunEntry:
    """One run.

    Attributes:
        folder: of the run, relative to where it was looked for.
        status: completed; at work on this PC; or stopped, and to be resumed.
        step, total_steps: how far it came; None where its files do not say.
        loss_before, loss_after: evaluation loss before the first step and at the last evaluation, in nats per token.
        started: seconds since 1970; the time of run.json where it does not say.
    """

    folder: Path
    status: Status
    model: str
    method: str
    step: int | None
    total_steps: int | None
    loss_before: float | None
    loss_after: float | None
    started: float


def list_runs(folder: Path) -> list[RunEntry]:
    """The runs in a folder, in the folders in it, and in those below its `outputs`; newest first."""
    obtained = [_entry(path, folder) for path in _run_folders(folder)]
    return sorted((entry for entry in obtained if entry is not None), key=lambda entry: -entry.started)


def _run_folders(folder: Path) -> Iterator[Path]:
    for path in (folder, *_folders(folder), *_folders(folder / OUTPUTS)):
        if (path / RUN).is_file():
            yield path


def _folders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for _, entry in zip(range(_FOLDERS), entries, strict=False) if entry.is_dir()]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def _entry(path: Path, folder: Path) -> RunEntry | None:
    values = read_run(path)
    if not values:
        return None
    same, result = _mapping(values.get("fingerprint")), _mapping(values.get("result"))
    rows = _last_rows(path / METRICS)
    steps = [row for row in rows if "loss" in row]
    losses = [row["eval_loss"] for row in rows if isinstance(row.get("eval_loss"), int | float)]
    before, after = (_mapping(result.get(name)).get("eval_loss") for name in ("held_out_before", "held_out_after"))
    return RunEntry(
        folder=path.relative_to(folder),
        status=_status(values),
        model=str(same.get("model") or "?"),
        method=str(same.get("method") or "?"),
        step=_number(result.get("steps"), steps[-1].get("step") if steps else None),
        total_steps=_number(values.get("total_steps"), same.get("total_steps")),
        loss_before=before if isinstance(before, int | float) else None,
        loss_after=after if isinstance(after, int | float) else (losses[-1] if losses else None),
        started=_started(values, path / RUN),
    )


def _status(values: dict[str, Any]) -> Status:
    if values.get("status") == "completed":
        return "completed"
    pid = values.get("pid")
    here = values.get("host") == socket.gethostname()
    alive = values.get("status") == "running" and here and isinstance(pid, int) and psutil.pid_exists(pid)
    return "running" if alive else "stopped"


def _started(values: dict[str, Any], file: Path) -> float:
    try:
        moment = datetime.fromisoformat(str(values.get("started")))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except ValueError:
        return file.stat().st_mtime


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """The rows at the end of a run's metrics."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:  # the first was cut, the last is being written
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(*candidates: object) -> int | None:
    return next((value for value in candidates if isinstance(value, int)), None)
