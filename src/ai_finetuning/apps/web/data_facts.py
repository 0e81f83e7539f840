"""What is known of training data without a tokenizer, as a child tells it: for first figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request

from ...embedded import is_embedded
from ...errors import InputNotFoundError
from ...planner.rough import Rows
from . import children
from .api import blocking
from .site import site_of

# Files whose facts are remembered, and seconds for a glance, which bounds what it computes itself and says so.
_REMEMBERED, _SECONDS = 32, 150.0


@dataclass(frozen=True)
class Facts:
    """Data at a glance, see data/glance.py.

    Attributes:
        rows: how many can be used, and their characters; None of a large file that only a whole reading tells.
        bad: rows that cannot be used, among those that were read.
        objective: what such rows teach: sft, preference (pairs) or kto (marks).
        read_whole: whether all of it was read.
    """

    rows: Rows | None
    bad: int
    objective: str
    read_whole: bool = True


async def facts_of(
    request: Request, source: str, columns: Mapping[str, str] | None = None, sheet: str | None = None
) -> Facts:
    """The facts of a file, or of data that ships with the package; asked once as long as the file stays the same.

    Raises:
        InputNotFoundError: it is not there. DataError: no row of it can be used.
    """
    stamp = (0, 0) if is_embedded(source) else await blocking(_stamp, Path(source))
    settings = [] if not columns else [f"data.columns={json.dumps(columns, ensure_ascii=False)}"]
    settings += [] if sheet is None else [f"data.sheet={sheet}"]
    known, key = site_of(request).facts, (source, " ".join(settings), *stamp)
    if key not in known:
        async with site_of(request).locks["facts"]:  # several tabs, and a form that is checked while it is opened
            if key not in known:
                command = ["data", "glance", source, *settings, "--json", "-"]
                known[key] = await children.run(request, command, seconds=_SECONDS, alone="data glance")
                for old in list(known)[:-_REMEMBERED]:
                    del known[old]
    found = known[key]
    rows = None if found["rows"] is None else Rows(*found["rows"])
    return Facts(rows, found["bad"], found["objective"], found["read_whole"])


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()
    except OSError:
        raise InputNotFoundError(f"{file} がありません。", f"{file} is not there.") from None
    return status.st_size, status.st_mtime_ns
