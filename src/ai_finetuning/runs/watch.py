"""Following a run: new rows of its metrics from a cursor on, its state, phase and the time left."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.run_folder import CONSOLE, METRICS
from ..system.files import is_plain
from .folder import read_run
from .rows import last_rows, rows_of, seconds_left
from .state import State, state_of

# Bytes of an answer.
MOST = 1 << 20
_CURSOR = re.compile(r"(\d{1,18})\.(\d{1,24})")


@dataclass(frozen=True)
class Update:
    """What is new of a run.

    Attributes:
        rows: of metrics.jsonl, behind the cursor that was given.
        cursor: for the next question.
        reset: these rows begin the file anew (it was cut when the run was resumed, or written again): earlier ones are
            to be forgotten.
        more: there are more rows already; ask again at once.
        state: with the phase.
        seconds_left: to the last step, by the last 20 steps of this process; None while that is not known, and where
            nothing is at work.
    """

    rows: list[dict[str, Any]]
    cursor: str
    reset: bool
    more: bool
    state: State
    seconds_left: float | None


def watch(folder: Path, cursor: str = "") -> Update:
    """What is new of a run since a cursor; empty: from its beginning. Any other text that is no cursor counts as that.

    A cursor is `BYTE.FILE`: rows of the file before that byte have been read; the file is told by its number on the disk,
    since a resumed run writes its rows anew, and may be longer than before by the next question.
    """
    state = state_of(read_run(folder))
    content, position, file, reset, more = read_whole_lines(folder / METRICS, cursor)
    left = seconds_left(last_rows(folder / METRICS)) if state.status == "running" else None
    return Update(rows_of(content), f"{position}.{file}", reset, more, state, left)


def read_whole_lines(path: Path, cursor: str) -> tuple[bytes, int, int, bool, bool]:
    """(lines behind the cursor, next position, the file's number, whether they begin the file anew, whether more lines
    are there): at most 1 MiB, and whole ones only. A longer line, which is none of ours, is passed over.
    """
    match = _CURSOR.fullmatch(cursor)
    position, file = (int(match[1]), int(match[2])) if match else (0, -1)
    try:
        if not is_plain(path):
            return b"", 0, 0, file > 0, False
        with path.open("rb") as stream:
            now = os.fstat(stream.fileno())
            reset = file != now.st_ino or position > now.st_size
            stream.seek(0 if reset else position)
            content = stream.read(MOST)
            end = content.rfind(b"\n") + 1 or (len(content) if len(content) == MOST else 0)
            start = 0 if reset else position
            more = len(content) == MOST and now.st_size > start + end
            return content[:end], start + end, now.st_ino, reset and file >= 0, more
    except OSError:
        return b"", 0, 0, False, False


def console(folder: Path, cursor: str = "") -> tuple[str, str]:
    """(what a run without a terminal has said since a cursor, the next cursor): at most 1 MiB, whole lines."""
    content, position, file, _, _ = read_whole_lines(folder / CONSOLE, cursor)
    return content.decode("utf-8", "replace"), f"{position}.{file}"
