"""A file's rows and what the doctor found in them, written once (doctor/table.py) and read a page at a time.

A folder holds `table.json` (what was read, in numbers), `rows.jsonl` (a row a line), `rows.idx` (where each line begins, 64
bits each, and where the last one ends) and `found.idx` (the numbers of the rows of each filter, 32 bits each, one filter
behind another). Any page is two reads at known places, however long the file is.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SUMMARY, ROWS, STARTS, FOUND = "table.json", "rows.jsonl", "rows.idx", "found.idx"
FORMAT = 1
PAGE = 100
_WIDE, _NARROW = array("Q").itemsize, array("I").itemsize


@dataclass(frozen=True)
class Filter:
    """Rows that one kind of finding is in.

    Attributes:
        key: of a rule of the doctor, or of a group: `empty`, `personal`, `long`.
        first: where its numbers begin in FOUND, in numbers.
        rows: how many.
    """

    key: str
    first: int
    rows: int


class Paged:
    """The rows of a table folder."""

    def __init__(self, folder: Path) -> None:
        """Opens it.

        Raises:
            FileNotFoundError: there is none. ValueError: it is of another version, or damaged.
        """
        self._folder = folder
        self.summary: dict[str, Any] = json.loads((folder / SUMMARY).read_bytes())
        if self.summary.get("format") != FORMAT:
            raise ValueError(str(folder))
        self._filters = {
            item["key"]: Filter(item["key"], item["first"], item["rows"]) for item in self.summary["filters"]
        }

    def __len__(self) -> int:
        return int(self.summary["rows"])

    def matching(self, key: str | None) -> int:
        """How many rows a filter has; all without one.

        Raises:
            KeyError: there is no such filter.
        """
        return len(self) if key is None else self._filters[key].rows

    def rows(self, first: int, count: int, key: str | None = None) -> list[dict[str, Any]]:
        """Rows from the `first`-th (0 is the first) of a filter, at most `count`.

        Raises:
            KeyError: there is no such filter.
        """
        last = max(first, min(first + count, self.matching(key)))
        return self._lines(range(first + 1, last + 1) if key is None else self.numbers(key, first, last - first))

    def numbers(self, key: str, first: int = 0, count: int | None = None) -> Sequence[int]:
        """The numbers of the rows of a filter, from the `first`-th on; none where there is no such filter."""
        chosen = self._filters.get(key, Filter(key, 0, 0))
        some = chosen.rows - first if count is None else count
        return _numbers(self._folder / FOUND, "I", _NARROW, chosen.first + first, some)

    def _lines(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        if not numbers:
            return []
        together = numbers[-1] - numbers[0] + 1 == len(numbers)
        obtained = []
        with (self._folder / ROWS).open("rb") as file:
            if together:  # one read of the places, not one for each row
                starts = _numbers(self._folder / STARTS, "Q", _WIDE, numbers[0] - 1, len(numbers) + 1)
                file.seek(starts[0])
                return [json.loads(file.read(end - start)) for start, end in zip(starts, starts[1:], strict=False)]
            for number in numbers:
                start, end = _numbers(self._folder / STARTS, "Q", _WIDE, number - 1, 2)
                file.seek(start)
                obtained.append(json.loads(file.read(end - start)))
        return obtained


def _numbers(path: Path, kind: str, size: int, first: int, count: int) -> Sequence[int]:
    """`count` numbers of a file from the `first`-th.

    Raises:
        ValueError: there are not so many.
    """
    values = array(kind)
    with path.open("rb") as file:
        file.seek(first * size)
        values.frombytes(file.read(count * size))
    if len(values) != count:
        raise ValueError(str(path))
    return values
