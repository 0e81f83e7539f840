"""The runs near a folder, newest first, by what their files say. Nothing is locked or changed; needs no torch."""

from __future__ import annotations

import contextlib
import json
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import psutil

from ..config.run_folder import METRICS, RUN
from ..system.files import subfolders
from .folder import read_run

# Where runs go by default, beside those in the folder itself.
OUTPUTS = "outputs"
# Bytes of run.json in all, runs whose metrics are read, and bytes at their end:
# a folder of a stranger takes no more time than others.
_BYTES, _FOLLOWED, _TAIL = 8 << 20, 20, 1 << 16
# What counts as a number of steps, a loss and a process; a file of a stranger may hold anything.
_STEPS, _LOSS, _PID = 10**12, 1e9, 2**31

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
    found = sorted(_read_runs(folder), key=lambda item: -_started(item[1], item[0] / RUN))
    return [_entry(path, values, folder, followed=at < _FOLLOWED) for at, (path, values) in enumerate(found)]


def _read_runs(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(folder, run.json) of runs, those that changed last first, as far as so many bytes go."""
    files = []
    for path in (folder, *subfolders(folder), *subfolders(folder / OUTPUTS)):
        with contextlib.suppress(OSError):
            state = (path / RUN).stat()
            if stat.S_ISREG(state.st_mode):
                files.append((-state.st_mtime, state.st_size, path))
    left = _BYTES
    for _, size, path in sorted(files):
        if size > left:
            continue
        left -= size
        values = read_run(path)
        if values:
            yield path, values


def _entry(path: Path, values: dict[str, Any], folder: Path, *, followed: bool) -> RunEntry:
    same, result = _mapping(values.get("fingerprint")), _mapping(values.get("result"))
    rows = _last_rows(path / METRICS) if followed else []
    steps = [row for row in rows if "loss" in row]
    losses = [loss for row in rows if (loss := _loss(row.get("eval_loss"))) is not None]
    before, after = (
        _loss(_mapping(result.get(name)).get("eval_loss")) for name in ("held_out_before", "held_out_after")
    )
    return RunEntry(
        folder=path.relative_to(folder),
        status=_status(values),
        model=str(same.get("model") or "?"),
        method=str(same.get("method") or "?"),
        step=_number(result.get("steps"), steps[-1].get("step") if steps else None),
        total_steps=_number(values.get("total_steps"), same.get("total_steps")),
        loss_before=before,
        loss_after=after if after is not None else (losses[-1] if losses else None),
        started=_started(values, path / RUN),
    )


def _status(values: dict[str, Any]) -> Status:
    if values.get("status") == "completed":
        return "completed"
    pid = values.get("pid")
    here = values.get("host") == socket.gethostname()
    if values.get("status") != "running" or not here or not isinstance(pid, int) or not 0 < pid < _PID:
        return "stopped"
    return "running" if psutil.pid_exists(pid) else "stopped"


def _started(values: dict[str, Any], file: Path) -> float:
    try:
        moment = datetime.fromisoformat(str(values.get("started")))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return file.stat().st_mtime


def _last_rows(file: Path) -> list[dict[str, Any]]:
    """The rows at the end of a run's metrics."""
    try:
        if not file.is_file():  # a pipe would be waited for
            return []
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            lines = stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []
    rows = []
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # the first was cut, the last is being written
            continue
        if isinstance(value, dict):
            rows.append(value)
    return rows


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(*candidates: object) -> int | None:
    return next((value for value in candidates if isinstance(value, int) and 0 <= value < _STEPS), None)


def _loss(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and -_LOSS < value < _LOSS else None
