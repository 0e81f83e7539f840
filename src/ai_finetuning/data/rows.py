"""What a reader gets and gives: a file's bytes, its rows, and a report of what was found."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, localized, refusing
from .bad_rows import BadRows


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read, and where it stood: the file's path as the user gave it, and the line (`data/faq.csv:12`)."""

    values: dict[str, Any]
    source: str


@dataclass
class FileReport:
    """What a file contains.

    Attributes:
        notes: (Japanese, English) about what was not read, such as other sheets and splits.
    """

    path: str
    kind: str
    encoding: str | None = None
    rows: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        encoding = ("、" if localized("ja", "en") == "ja" else ", ") + self.encoding if self.encoding else ""
        head = localized(
            f"{self.path}: {self.kind}{encoding}、{self.rows} 行",
            f"{self.path}: {self.kind}{encoding}, {self.rows} rows",
        )
        return [head, *(localized(f"{self.path}: {ja}", f"{self.path}: {en}") for ja, en in self.notes)]


@dataclass(frozen=True)
class File:
    """A file to be read.

    Attributes:
        path: as the user gave it; rows are named by it.
        raw: its bytes, no longer compressed.
        report: filled in while reading.
        bad: receives the rows that cannot be used.
        columns: roles of columns, given by the user; they tell which row of a table is its heading.
        sheet: which sheet of a workbook, by name; None chooses the one whose heading fits.
    """

    path: Path
    raw: bytes
    report: FileReport
    bad: BadRows
    columns: Mapping[str, str] | None = None
    sheet: str | None = None

    def place(self, number: int) -> str:
        """The name of a line."""
        return f"{self.report.path}:{number}"

    def item(self, number: int) -> str:
        """The name of an item where the file has no lines of its own."""
        return f"{self.report.path}[{number}]"


@contextlib.contextmanager
def parsing(name: str, kind: str, hint: tuple[str, str] = ("", "")) -> Iterator[None]:
    """Runs a library's parser over bytes of a stranger; whatever it raises means that the bytes are damaged.

    zipfile, the decompressors, openpyxl with its XML parser, pyarrow and `datasets` raise a dozen kinds between them, none
    of which they promise. What the toolkit refuses by itself, and a machine without memory, are not of these.

    Args:
        name: of the file, for the message.
        kind: what it should be.
        hint: the way out (Japanese, English).

    Raises:
        DataError: in place of the library's error.
    """
    ja = f"{name} を {kind} として読めません（{{reason}}）。{hint[0]}"
    en = f"{name} is not valid {kind}: damaged, or another kind of file ({{reason}}).{hint[1]}"
    with refusing(DataError, ja, en):
        yield


Reader = Callable[[File], Iterator[Row]]
