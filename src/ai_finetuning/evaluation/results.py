"""eval.jsonl: what every item of every task gave, from which statistics can be redone and a stopped command goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError, StorageError
from ..messages import argument, excerpt
from ..system.files import appended, is_private
from .likelihood import WAYS
from .tasks import Task

FILE, FORMAT = "eval.jsonl", 1


@dataclass
class Results:
    """The rows of a file: a line an item, below one that says what was measured.

    A row has `side` (before, after), `task`, `item`, `score`, and what that comes from (likelihoods, answer, faults).

    Attributes:
        path: the file; None keeps rows in memory.
        made_by: what the rows depend on; another command does not go on with them.
        rows: by (side, task), then by item.
    """

    path: Path | None
    made_by: dict[str, Any]
    rows: dict[tuple[str, str], dict[str, dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, made_by: Mapping[str, Any], *, restart: bool = False) -> Results:
        """The results at a path, with what an earlier command has measured.

        Args:
            restart: forget that.

        Raises:
            ConfigError: they belong to another command, and the message says what differs; or others can write them.
            StorageError: they cannot be removed.
        """
        results = cls(path, json.loads(json.dumps(made_by)))
        if path is None or not os.path.lexists(path):
            return results
        if restart:
            try:
                path.unlink()
            except OSError as error:
                raise _unwritable(path, error) from error
            return results
        if not is_private(path):
            raise ConfigError(
                f"途中の結果 {argument(path)} はほかのユーザーが書き込めるか、リンクです。消すか、--out を変えてください。",
                f"the results so far, {argument(path)}, can be written by other users, or are a link; remove them, or choose "
                "another --out.",
            )
        results._read(path)
        return results

    def _read(self, path: Path) -> None:
        try:
            if not path.is_file():
                raise ValueError("no regular file")
            lines = path.read_bytes().split(b"\n")[:-1]  # what a killed process wrote last may be half a line
            head = json.loads(lines[0]) if lines else None
            if head is not None and (head["format"] != FORMAT or not isinstance(head["made_by"], dict)):
                raise ValueError("format")
            rows = [json.loads(line) for line in lines[1:]]
            if not all(_is_row(row) for row in rows):
                raise ValueError("a line is no result")
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            why = excerpt(str(error))
            raise ConfigError(
                f"途中の結果 {argument(path)} を読めません（{why}）。--restart で最初からやり直せます。",
                f"the results so far, {argument(path)}, cannot be read ({why}); --restart begins anew.",
            ) from error
        changed = (
            [] if head is None else [name for name, value in self.made_by.items() if head["made_by"].get(name) != value]
        )
        if changed:
            raise ConfigError(
                f"途中の結果 {argument(path)} は別の指定で作られています（違うもの: {', '.join(changed)}）。同じ指定に戻すか、--out を変えるか、--restart で最初からやり直してください。",
                f"the results so far, {argument(path)}, were made by another command (different: {', '.join(changed)}); use "
                "the same one, choose another --out, or begin anew with --restart.",
            )
        self._keep(rows)

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
        if self.path is not None:
            try:
                with appended(self.path) as file:
                    head = [{"format": FORMAT, "made_by": self.made_by}] if file.tell() == 0 else []
                    file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*head, *new]).encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise _unwritable(self.path, error) from error
        self._keep(new)


def _has_all(row: Mapping[str, Any], task: Task) -> bool:
    tables = {"scores": task.metrics, "right_by": WAYS if task.kind == "choices" else ()}
    written = task.kind not in ("answers", "instructions") or ("answer" in row and "faults" in row)
    return written and all(name in row.get(table, {}) for table, names in tables.items() for name in names)


def _is_row(row: object) -> bool:
    """Whether a line is a result: names, a score that is a number, and of what else is read the right types."""
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("side", "task", "item")):
        return False
    tables = [row.get(name, {}) for name in ("scores", "right_by")]
    if not all(isinstance(table, dict) for table in tables) or not isinstance(row.get("answer", ""), str):
        return False
    faults = row.get("faults", [])
    numbers = [row.get("score"), *(value for table in tables for value in table.values())]
    return (
        all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        and isinstance(faults, list)
        and all(isinstance(name, str) for name in faults)
    )


def _unwritable(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"途中の結果 {argument(path)} に書けません（{error.strerror or error}）。空き容量と権限を確認してください。",
        f"the results so far, {argument(path)}, cannot be written ({error.strerror or error}); check space and rights.",
    )
