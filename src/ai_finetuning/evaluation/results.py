"""eval.jsonl: what every item of every task gave, from which statistics can be redone and a stopped command goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.run_folder import EVAL
from ..errors import Reason
from ..inference.unfinished import Unfinished
from .language import share_of
from .likelihood import WAYS
from .tasks import Task

FILE = EVAL
_TEXTS = ("answer", "question", "accepted")


def share_of_row(row: Mapping[str, Any]) -> float | None:
    """The share of Japanese characters of a row's answer, be the answer there or not; None of an empty one."""
    return share_of(row["answer"]) if "answer" in row else row["ja_share"]


@dataclass
class Results:
    """The rows of a file: a line an item, below one that says what was measured.

    A row has `side` (before, after), `task`, `item`, `score`, and what that comes from (likelihoods, answer, faults).

    Attributes:
        file: None keeps rows in memory.
        rows: by (side, task), then by item.
        texts: whether the file holds questions and answers; else what is counted of them.
    """

    file: Unfinished | None
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)
    texts: bool = True

    @classmethod
    def open(
        cls, path: Path | None, made_by: Mapping[str, Any], *, restart: bool = False, texts: bool = True
    ) -> Results:
        """The results at a path, with what an earlier command has measured.

        Args:
            path: None keeps them in memory.
            made_by: what the rows depend on; another command does not go on with them.
            restart: forget what is there.

        Raises:
            ConfigError, StorageError: see Unfinished.read.
        """
        results = cls(None, texts=texts)
        if path is not None:
            results.file = Unfinished.at(path, made_by, Reason("途中の結果", "the results so far"))
            results._keep(results.file.read(_row, restart=restart))
        return results

    def _keep(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.rows.setdefault((row["side"], row["task"]), {})[row["item"]] = row

    def of(self, side: str, task: str) -> dict[str, dict[str, Any]]:
        """The rows of a side and a task, by item."""
        return self.rows.get((side, task), {})

    def complete(self, side: str, task: Task) -> dict[str, dict[str, Any]]:
        """The rows of a side and a task that have what is read of such a task's rows."""
        return {name: row for name, row in self.of(side, task.name).items() if _has_all(row, task)}

    def add(self, rows: Iterable[dict[str, Any]]) -> None:
        """Writes rows to disk before the next ones are made.

        Raises:
            StorageError: they cannot be written.
        """
        new = [json.loads(json.dumps(row)) for row in rows]
        if self.file is not None:
            self.file.add(map(self._written, new))
        self._keep(new)

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.texts or "answer" not in row:
            return row
        return {name: value for name, value in row.items() if name not in _TEXTS} | {"ja_share": share_of_row(row)}

    def forget(self, side: str) -> None:
        """Drops what a side gave, in one step: of a model that has changed since.

        Raises:
            StorageError: the file cannot be written.
        """
        self.rows = {place: rows for place, rows in self.rows.items() if place[0] != side}
        if self.file is not None:
            self.file.replace(map(self._written, [row for rows in self.rows.values() for row in rows.values()]))


def _has_all(row: Mapping[str, Any], task: Task) -> bool:
    tables = {"scores": task.metrics, "right_by": WAYS if task.kind == "choices" else ()}
    asked = "answer" in row or "ja_share" in row
    written = task.kind not in ("answers", "instructions") or (asked and "faults" in row)
    return written and all(name in row.get(table, {}) for table, names in tables.items() for name in names)


def _row(row: Any) -> dict[str, Any]:
    """A line that is a result: names, a score that is a number, and of what else is read the right types.

    Raises:
        ValueError: it is none.
    """
    if not _is_row(row):
        raise ValueError("a line is no result")
    found: dict[str, Any] = row
    return found


def _is_row(row: object) -> bool:
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("side", "task", "item")):
        return False
    tables = [row.get(name, {}) for name in ("scores", "right_by")]
    if not all(isinstance(table, dict) for table in tables) or not isinstance(row.get("answer", ""), str):
        return False
    faults = row.get("faults", [])
    share = row.get("ja_share")
    numbers = [
        row.get("score"),
        *([] if share is None else [share]),
        *(value for table in tables for value in table.values()),
    ]
    return (
        all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        and isinstance(faults, list)
        and all(isinstance(name, str) for name in faults)
    )
