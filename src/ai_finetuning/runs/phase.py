"""What a run is busy with, told in its run.json; never a reason to fail."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from ..config.run_folder import RUN
from ..errors import Reason
from ..system.children import LAUNCHER
from ..system.files import write_in_place
from .folder import read_run
from .process import is_alive

# The names stand in run.json; the words are for people.
PHASES = {
    "waiting": Reason("順番待ち", "waiting"),
    "preparing": Reason("準備中", "preparing"),
    "data": Reason("データ準備", "preparing data"),
    "model": Reason("モデル読み込み", "loading the model"),
    "training": Reason("学習", "training"),
    "evaluation": Reason("評価", "evaluating"),
    "saving": Reason("保存", "saving"),
}
# Of a run that was started as a child: the process before the run itself writes into its run.json.
CHILD = "child"


def phase(name: str) -> dict[str, Any]:
    """A phase as run.json holds it, with the time at which it began, in seconds since 1970."""
    return {"name": name, "since": round(time.time(), 3)}


def change_run(folder: Path, **values: Any) -> None:
    """Changes entries of a run.json in one step.

    Raises:
        OSError: it cannot be written.
    """
    write_run(folder, read_run(folder) | values)


def write_run(folder: Path, content: dict[str, Any]) -> None:
    """Replaces a run.json in one step.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_in_place(folder / RUN, text.encode("utf-8", "backslashreplace"))  # half a character, as JSON writes it


def tell_phase(folder: Path, name: str) -> None:
    """Writes what this process does now into the run.json of its run; nothing where no run of its own is there yet."""
    with contextlib.suppress(OSError):
        run = read_run(folder)
        child = run.get(CHILD)
        if isinstance(child, dict):
            if is_mine(child):
                change_run(folder, **{CHILD: child | {"phase": phase(name)}})
        elif run.get("status") == "running" and is_mine(run):
            change_run(folder, phase=phase(name))


def is_mine(values: dict[str, Any]) -> bool:
    """Whether an identity is this process's, or that of the one which has started it as a rank of a run."""
    return values.get("pid") in _own_numbers() and is_alive(values)


def _own_numbers() -> list[int]:
    launcher = os.environ.get(LAUNCHER, "")
    return [os.getpid(), *([int(launcher)] if launcher.isdecimal() else [])]
