"""Tables: which row is the heading, and CSV and TSV with any delimiter."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from ..errors import DataError
from ..messages import excerpt
from .bad_rows import BadRow
from .columns import role_of
from .formats import is_heading
from .rows import File, Row

# Rows among which the heading is looked for: covers, titles, dates and notes stand above it.
_ABOVE = 20
_DELIMITERS = {".csv": (",", "\t", ";", "|"), ".tsv": ("\t", ",", ";", "|")}


def heading_row(rows: Sequence[tuple[int, Sequence[Any]]], columns: Mapping[str, str] | None) -> int | None:
    """Which of the first rows of a table is its heading: the first whose cells mean something; None where none does."""
    return next((index for index, (_, cells) in enumerate(rows) if is_heading(_names(cells), columns)), None)


def _names(cells: Sequence[Any]) -> list[str]:
    return ["" if cell is None else str(cell).strip() for cell in cells]


def _filled(cells: Sequence[Any]) -> list[Any]:
    return [cell for cell in cells if cell is not None and str(cell).strip()]


def table(rows: Iterable[tuple[int, Sequence[Any]]], file: File) -> Iterator[Row]:
    """Rows of a table below its heading; what stands above the heading is named.

    Raises:
        DataError: two headings of one name, where the column is used.
    """
    source = iter(rows)
    first = [(number, cells) for number, cells in islice(source, _ABOVE) if _filled(cells)]
    start = heading_row(first, file.columns)
    if start is None:
        # Nobody knows these headings: the first row with two cells, or the only column, so that a message can name them.
        start = next((index for index, (_, cells) in enumerate(first) if len(_filled(cells)) > 1 or len(cells) == 1), 0)
    if not first:
        return
    if start:
        line = first[start][0]
        file.report.notes.append(
            (
                f"見出し（{line} 行目）より上の {start} 行は読みません",
                f"rows above the heading (line {line}) that are not read: {start}",
            )
        )
    header = _header(_names(first[start][1]), file)
    for number, cells in (*first[start + 1 :], *source):
        if not _filled(cells):
            continue
        if len(cells) > len(header) and _filled(cells[len(header) :]):
            bad = BadRow(
                f"セルが {len(cells)} 個あり、見出しの {len(header)} 個より多いです",
                f"{len(cells)} cells but only {len(header)} headings",
            )
            file.bad.add(bad, file.place(number))
            continue
        padded = [*cells, *[""] * (len(header) - len(cells))]
        yield Row(
            {key: "" if cell is None else cell for key, cell in zip(header, padded, strict=False)}, file.place(number)
        )


def _header(names: list[str], file: File) -> list[str]:
    """Unique names of the columns; a column without a heading is named by its number."""
    wanted = set((file.columns or {}).values())
    unique: list[str] = []
    for number, name in enumerate(names, start=1):
        if name and name in names[: number - 1]:
            if name in wanted or role_of(name) is not None:
                raise DataError(
                    f"{file.report.path}: 見出し {excerpt(name)} の列が 2 つあります。どちらを使うか決められません。片方の見出しを変えてください。",
                    f"{file.report.path}: two columns have the heading {excerpt(name)}; rename one of them.",
                )
            name = f"{name} (#{number})"
        unique.append(name or f"#{number}")
    return unique


def records(delimiter: str, file: File) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record begins, cells) of a CSV file.

    Raises:
        DataError: broken quotes; it names the line on which the record begins.
    """
    csv.field_size_limit(2**27)
    reader = csv.reader(file.lines(""), delimiter=delimiter, strict=True)
    before = 0
    try:
        for cells in reader:
            yield before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        path = file.report.path
        raise DataError(
            f"{path} の {before + 1} 行目から始まる行が CSV として読めません（{error}）。引用符を確認してください。",
            f"{path}, the record from line {before + 1}: not valid CSV ({error}); check the quotes.",
        ) from None


def _delimiter(candidates: Sequence[str], file: File) -> str:
    """The delimiter under which a heading shows; else the first one that the first line holds."""
    for mark in candidates:
        try:
            lines = islice(records(mark, file), _ABOVE)
            first = [(number, cells) for number, cells in lines if _filled(cells)]
        except DataError:
            continue
        if heading_row(first, file.columns) is not None:
            return mark
    line = next((line for line in file.lines("\n") if line.strip()), "")
    return next((mark for mark in candidates if mark in line), candidates[0])


def read_delimited(file: File, candidates: Sequence[str] | None = None) -> Iterator[Row]:
    """Rows of a CSV or TSV file.

    Raises:
        DataError: broken quotes.
    """
    marks = candidates or _DELIMITERS.get(f".{file.report.kind}", _DELIMITERS[".csv"])
    mark = _delimiter(marks, file)
    if mark != marks[0]:
        name = {"\t": "TAB"}.get(mark, mark)
        file.report.notes.append((f"区切り文字は {name} です", f"the delimiter is {name}"))
    yield from table(records(mark, file), file)
