"""What a reader gets and gives: a file's bytes as a stream, its rows, and a report of what was found."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError, InputNotFoundError, Reason, ToolkitError, localized
from ..messages import excerpt, on_one_line
from .bad_rows import BadRows
from .encoding import find_encoding, find_first_encoding


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
        sheet: of a workbook the sheet that was read.
        sheets: of a workbook (name, rows with something in them, whether its heading fits) of each sheet that holds something.
    """

    path: str
    kind: str
    encoding: str | None = None
    rows: int = 0
    notes: list[tuple[str, str]] = field(default_factory=list)
    sheet: str | None = None
    sheets: list[tuple[str, int, bool]] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        encoding = ("、" if localized("ja", "en") == "ja" else ", ") + self.encoding if self.encoding else ""
        head = localized(
            f"{self.path}: {self.kind}{encoding}、{self.rows} 行",
            f"{self.path}: {self.kind}{encoding}, {self.rows} rows",
        )
        notes = (localized(f"{self.path}: {ja}", f"{self.path}: {en}") for ja, en in self.notes)
        return [on_one_line(line) for line in (head, *notes)]  # names of files, sheets and keys are anybody's


@dataclass(frozen=True)
class Content:
    """The bytes of a file, no longer compressed.

    Attributes:
        open: gives them as a stream, from the beginning, as often as it is asked.
        position: how many bytes of the file on the disk the stream that was opened last has read.
        local: where they lie just so on the disk; None for what is unpacked or in memory.
        sha256: of the file on the disk, for readers that asked for it; the first reading of the whole file makes it.
    """

    open: Callable[[], BinaryIO]
    local: Path | None = None
    position: Callable[[], int] = lambda: 0
    sha256: Callable[[], str] | None = None

    @classmethod
    def of(cls, raw: bytes) -> Content:
        """Bytes in memory."""
        return cls(lambda: io.BytesIO(raw))

    @cached_property
    def raw(self) -> bytes:
        """All of them, for the kinds of files that cannot be read piece by piece."""
        with self.open() as stream:
            return stream.read()


@dataclass(frozen=True)
class File:
    """A file to be read.

    Attributes:
        path: as the user gave it; rows are named by it.
        content: its bytes.
        report: filled in while reading.
        bad: receives the rows that cannot be used.
        columns: roles of columns, given by the user; they tell which row of a table is its heading.
        sheet: which sheet of a workbook, by name; None chooses the one whose heading fits.
        beginning: whether its beginning alone tells the encoding; bytes further on that it does not have make bad rows.
    """

    path: Path
    content: Content
    report: FileReport
    bad: BadRows
    columns: Mapping[str, str] | None = None
    sheet: str | None = None
    beginning: bool = False

    @property
    def raw(self) -> bytes:
        """All of its bytes."""
        return self.content.raw

    @cached_property
    def _encoding(self) -> tuple[str, str]:
        find = find_first_encoding if self.beginning else find_encoding
        encoding, errors = find(self.content.open, self.report.path)
        self.report.encoding = encoding
        return encoding, errors

    def lines(self, ends: str | None) -> Iterator[str]:
        """Its text line by line, each with its end, without a byte order mark.

        Args:
            ends: what ends a line, as `open` takes it: "\n" alone, "" for any end, left as it is, or None for any,
                which becomes "\n".

        Raises:
            DataError: no encoding that is known.
        """
        encoding, errors = self._encoding
        with io.TextIOWrapper(self.content.open(), encoding, errors, newline=ends) as text:
            first = next(text, "").removeprefix("\ufeff")
            if first:
                yield first
            yield from text

    def utf8_lines(self) -> Iterator[bytes]:
        """lines("\n") as UTF-8, lone surrogates as `surrogatepass` writes them: a file that is UTF-8 is not decoded for it.

        Raises:
            DataError: no encoding that is known.
        """
        encoding, errors = self._encoding
        if errors != "strict" or encoding not in ("utf-8", "utf-8-sig"):
            for line in self.lines("\n"):
                yield line.encode("utf-8", "surrogatepass")
            return
        with self.content.open() as stream:
            first = next(stream, b"").removeprefix(codecs.BOM_UTF8).removeprefix(codecs.BOM_UTF8)
            if first:
                yield first
            yield from stream

    def text(self) -> str:
        """All of its text, without a byte order mark.

        Raises:
            DataError: no encoding that is known.
        """
        encoding, errors = self._encoding
        return self.raw.decode(encoding, errors).removeprefix("\ufeff")

    def place(self, number: int) -> str:
        """The name of a line."""
        return f"{self.report.path}:{number}"

    def item(self, number: int) -> str:
        """The name of an item where the file has no lines of its own."""
        return f"{self.report.path}[{number}]"


_AGAIN = "コピーやダウンロードが途中なら、やり直してください。", " Copy or download it again."


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Reads data that was there when it was named: it may have gone since, or may not be read by this user.

    Args:
        path: for the message, where the error names no file.

    Raises:
        InputNotFoundError: in place of OSError.
    """
    try:
        yield
    except ToolkitError:  # some of them are OSErrors as well
        raise
    except OSError as error:
        name = error.filename if isinstance(error.filename, str | Path) else path
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise InputNotFoundError(
            f"データの {name} を読めません（{reason}）。ファイルがそこにあるか、読む権限があるかを確認してください。",
            f"the data {name} cannot be read ({reason}); see that it is there, and that you may read it.",
        ) from None


@contextlib.contextmanager
def parsing(name: str, kind: str, hint: tuple[str, str] = _AGAIN) -> Iterator[None]:
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
    try:
        yield
    except (ToolkitError, MemoryError):
        raise
    except Exception as error:
        reason = type(error).__name__  # what it says beside that may be a cell's text
        shown = f"{reason}: {excerpt(str(error))}"
        raise DataError(
            f"{name} を {kind} として読めません（{shown}）。{hint[0]}",
            f"{name} is not valid {kind}: damaged, or another kind of file ({shown}).{hint[1]}",
            Reason(
                f"{name} を {kind} として読めません（{reason}）。{hint[0]}",
                f"{name} is not valid {kind}: damaged, or another kind of file ({reason}).{hint[1]}",
            ),
        ) from None


Reader = Callable[[File], Iterator[Row]]
