"""Tables: which row is the heading, and CSV and TSV with any delimiter."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from ..errors import DataError
from ..messages import excerpt
from .bad_rows import BadRow
from .columns import role_of
from .formats import is_heading
from .rows import File, Row

# Rows among which the heading is looked for: covers, titles, dates and notes stand above it.
_ABOVE = 20
# Lines that a note names.
_NAMED = 3
_AS_TEXT = re.compile('="[^"]*"')
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
    elif _names_groups(first[start : start + 2], file.columns):
        start += 1
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
    names = _names(first[start][1])
    header = _header(names, file)
    several, again = len(_filled(names)) > 1, []
    for number, cells in chain(first[start + 1 :], source):
        if not _filled(cells):
            continue
        if several and _repeats(cells, names):
            again.append(number)
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
    if again:
        lines = ", ".join(map(str, again[:_NAMED])) + (", …" if len(again) > _NAMED else "")
        file.report.notes.append(
            (
                f"見出しと同じ行は読みません: {len(again)} 行（{lines} 行目）",
                f"rows that repeat the heading, not read: {len(again)} (line {lines})",
            )
        )


def _names_groups(rows: Sequence[tuple[int, Sequence[Any]]], columns: Mapping[str, str] | None) -> bool:
    """Whether the first of two rows names groups of the columns that the second one names, as merged cells do."""
    if len(rows) < 2:
        return False
    above, below = (_names(cells) for _, cells in rows)
    return len(_filled(below)) > len(_filled(above)) and is_heading(below, columns)


def _repeats(cells: Sequence[Any], names: Sequence[str]) -> bool:
    """Whether a row is the heading once more, as where tables were joined or printed."""
    if str(cells[0] or "").strip().removeprefix("\ufeff") != names[0]:
        return False
    own = [name.removeprefix("\ufeff") for name in _names(cells)]
    return [*own, *[""] * (len(names) - len(own))] == [*names, *[""] * (len(own) - len(names))]


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


def records(delimiter: str, file: File, *, blanks: bool = False) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record begins, cells) of a CSV file.

    Args:
        delimiter: what stands between cells.
        file: the file.
        blanks: whether blanks behind a delimiter are no part of a cell.

    Raises:
        DataError: broken quotes; it names the line on which the record begins.
    """
    csv.field_size_limit(2**27)
    reader = csv.reader(file.lines(""), delimiter=delimiter, strict=True, skipinitialspace=blanks)
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
    blanks = any(map(_is_quoted_behind_blank, chain.from_iterable(cells for _, cells in _first(mark, file))))
    if blanks:
        file.report.notes.append(
            (
                "区切り文字の後の空白は、引用符の前にあるためセルに含めません",
                "blanks behind a delimiter stand before quotes and are no part of a cell",
            )
        )
    yield from table(_as_written(records(mark, file, blanks=blanks), file), file)


def _first(mark: str, file: File) -> list[tuple[int, list[str]]]:
    """The first records; none where quotes are broken, which is said when they are read."""
    try:
        return list(islice(records(mark, file), _ABOVE))
    except DataError:
        return []


def _is_quoted_behind_blank(cell: str) -> bool:
    """Whether a cell is in quotes that are part of its text, since a blank stands before them (`a, "b"`)."""
    return cell[:1] == " " and cell.endswith('"') and cell.lstrip(" ")[:1] == '"' and len(cell.strip()) > 1


def _as_written(rows: Iterable[tuple[int, list[str]]], file: File) -> Iterator[tuple[int, list[str]]]:
    """Records whose cells are what people wrote; those with quotes for a program are noted as bad rows.

    Excel's `="0120"` keeps the zero of a number and shows 0120.
    """
    for number, cells in rows:
        if any(map(_is_quoted_behind_blank, cells)):
            bad = BadRow(
                "引用符の前に空白があり、引用符が文の一部になります。空白を取り除いてください",
                "a blank stands before a quote, which would make the quotes part of the text; remove the blank",
            )
            file.bad.add(bad, file.place(number))
            continue
        yield number, [cell[2:-1] if cell[:2] == '="' and _AS_TEXT.fullmatch(cell) else cell for cell in cells]
