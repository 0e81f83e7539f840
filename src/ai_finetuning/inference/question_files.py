"""Files of questions: which column asks, and everything else in them, so that the answers go beside it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.hints import near_files
from ..data.bad_rows import BadRows
from ..data.columns import listed, plain, role_of
from ..data.encoding import UNREADABLE, decode
from ..data.rows import Content, File, FileReport, parsing
from ..data.spreadsheet import check_parts, shown_rows
from ..data.tables import records
from ..errors import ConfigError, DataError, InputNotFoundError

KINDS = (".csv", ".tsv", ".xlsx", ".jsonl")
_DELIMITERS = {".csv": (",", "\t", ";", "|"), ".tsv": ("\t", ",", ";", "|")}
# Rows among which the heading is looked for.
_ABOVE = 20


@dataclass(frozen=True)
class Question:
    """One row of a file.

    Attributes:
        place: where it stands (`faq.csv:12`).
        number: the line, row or item by which people find it.
        text: what is asked; empty where the cell is.
        material: what the question is about, from a column like 入力.
        system: a system text of the row's own.
        unreadable: its cells hold bytes that the encoding of the file does not have.
    """

    place: str
    number: int
    text: str
    material: str = ""
    system: str = ""
    unreadable: bool = False


@dataclass
class Questions:
    """A file of questions.

    Attributes:
        path: as the user gave it.
        kind: one of KINDS.
        digest: SHA-256 of the bytes.
        questions: the rows below the heading that hold anything, in their order.
        headings: of the table, or the keys of the objects.
        column, material, system: headings of the columns that are used; None where there is none.
        above: rows above the heading (tables only).
        rows: all rows below the heading, blank ones too, as text; of JSONL the objects.
        index: for each question its place in `rows`.
        heading_row: number of the heading's row in the file, from 1.
        encoding, delimiter, line_end: of a text file.
        sheet, others: of a workbook: the sheet that is read, and the other ones.
        raw: the bytes of a workbook.
    """

    path: str
    kind: str
    digest: str
    questions: list[Question] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    column: str = ""
    material: str | None = None
    system: str | None = None
    above: list[list[str]] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    heading_row: int = 1
    encoding: str | None = None
    delimiter: str = ","
    line_end: str = "\r\n"
    sheet: str | None = None
    others: list[str] = field(default_factory=list)
    raw: bytes = b""

    def values(self, place: int) -> dict[str, Any]:
        """All cells of a question's row by their headings, `#3` where a column has none; of JSONL its object."""
        row = self.rows[self.index[place]]
        if self.kind == ".jsonl":
            return dict(row)
        names = [name or f"#{number}" for number, name in enumerate(self.headings, start=1)]
        return dict(zip(names, [*row, *[""] * (len(names) - len(row))], strict=False))

    def filled(self, heading: str) -> list[Question]:
        """The questions whose cell in a column holds something."""
        if self.kind == ".jsonl":
            values = [row.get(heading) for row in self.rows]
        else:
            place = self.headings.index(heading)
            values = [row[place] if place < len(row) else "" for row in self.rows]
        return [
            question
            for question, row in zip(self.questions, self.index, strict=True)
            if values[row] not in (None, "", [], {}) and str(values[row]).strip()
        ]


def read_questions(path: str | Path, *, column: str | None = None, sheet: str | None = None) -> Questions:
    """The questions of a CSV, TSV, Excel or JSON Lines file.

    Args:
        path: the file.
        column: heading of the column that asks; None finds it by what headings mean.
        sheet: which sheet of a workbook; None takes the first visible one that has such a heading.

    Raises:
        InputNotFoundError: no such file. DataError: a kind, encoding or shape that cannot be used, or no column that
            asks. ConfigError: a column or sheet that is not there.
    """
    obtained = _read(path, column, sheet)
    if not obtained.questions:
        raise DataError(f"{path} に質問の行がありません。", f"{path} holds no row with a question.")
    return obtained


def headings_of(path: str | Path, *, sheet: str | None = None) -> list[str]:
    """The headings of such a file, also where none of them, or several, may ask.

    Raises:
        InputNotFoundError, DataError, ConfigError: as read_questions().
    """
    unknown: list[Questions] = []
    try:
        obtained = _read(path, None, sheet, unknown)
    except DataError:
        if not unknown or not unknown[0].headings:
            raise
        obtained = unknown[0]
    return [name for name in obtained.headings if name]


def _read(path: str | Path, column: str | None, sheet: str | None, begun: list[Questions] | None = None) -> Questions:
    """The questions of a file, of which there may be none.

    Args:
        begun: takes what is filled, so that as much is known as was read before it was refused.
    """
    file = Path(path)
    if not file.is_file():
        near = near_files(file, KINDS)
        raise InputNotFoundError(
            f"質問のファイル {path} がありません。{near.ja}", f"the file of questions {path} does not exist.{near.en}"
        )
    kind = {".ndjson": ".jsonl"}.get(file.suffix.lower(), file.suffix.lower())
    if kind not in KINDS:
        raise DataError(
            f"{path} の種類 {kind or '（拡張子なし）'} は使えません。質問のファイルは {' '.join(KINDS)} です（Excel の古い形式は .xlsx に保存してください）。",
            f"{path}: a file of questions is one of {' '.join(KINDS)}, not {kind or 'one without an ending'} (save older "
            "Excel files as .xlsx).",
        )
    if sheet is not None and kind != ".xlsx":
        raise ConfigError(
            f"--sheet は Excel のファイルにだけ使えます（{path}）。", f"--sheet is for Excel files only ({path})."
        )
    raw = file.read_bytes()
    obtained = Questions(str(path), kind, hashlib.sha256(raw).hexdigest())
    if begun is not None:
        begun.append(obtained)
    read = {".xlsx": _read_workbook, ".jsonl": _read_jsonl}.get(kind, _read_delimited)
    read(obtained, raw, column, sheet)
    return obtained


def _read_jsonl(obtained: Questions, raw: bytes, column: str | None, sheet: str | None) -> None:
    text, obtained.encoding = decode(raw, obtained.path)
    numbers = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise DataError(
                f"{obtained.path}:{number}: JSON のオブジェクト {{...}} ではありません。1 行に 1 つ書いてください。",
                f"{obtained.path}:{number}: not a JSON object {{...}}; write one on each line.",
            )
        obtained.rows.append(values)
        numbers.append(number)
    obtained.headings = list(dict.fromkeys(str(key) for row in obtained.rows for key in row))
    _choose(obtained, obtained.headings, column)
    used = [obtained.column, obtained.material, obtained.system]
    for place, (number, row) in enumerate(zip(numbers, obtained.rows, strict=True)):
        cells = [None if name is None else row.get(name) for name in used]
        _add(obtained, place, number, *("" if cell is None else _text(cell).strip() for cell in cells))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _read_delimited(obtained: Questions, raw: bytes, column: str | None, sheet: str | None) -> None:
    text, obtained.encoding = decode(raw, obtained.path)
    text = text.removeprefix("\ufeff")
    obtained.line_end = "\r\n" if "\r\n" in text or "\n" not in text else "\n"
    file = File(Path(obtained.path), Content.of(raw), FileReport(obtained.path, obtained.kind), BadRows())
    best: list[tuple[int, list[str]]] | None = None
    for mark in _DELIMITERS[obtained.kind]:
        try:
            table = list(records(mark, file))
        except DataError:
            if mark == _DELIMITERS[obtained.kind][-1] and best is None:
                raise
            continue
        if _heading(table, column) is not None:
            best, obtained.delimiter = table, mark
            break
        if best is None or _width(table) > _width(best):
            best, obtained.delimiter = table, mark
    _take_table(obtained, best or [], column)


def _read_workbook(obtained: Questions, raw: bytes, column: str | None, sheet: str | None) -> None:
    import openpyxl

    obtained.raw = raw
    file = File(Path(obtained.path), Content.of(raw), FileReport(obtained.path, ".xlsx"), BadRows())
    with parsing(
        obtained.path, "Excel (.xlsx)", ("Excel で .xlsx に保存し直してください。", " Save it as .xlsx again.")
    ):
        check_parts(file)
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        tables = {
            item.title: [(number, [cell or "" for cell in cells]) for number, cells in shown_rows(item, obtained.path)]
            for item in book.worksheets
        }
        visible = [item.title for item in book.worksheets if item.sheet_state == "visible"]
    if sheet is not None and sheet not in tables:
        raise ConfigError(
            f"{obtained.path} にシート {sheet} がありません。シート: {listed(list(tables))}",
            f"{obtained.path} has no sheet {sheet}; sheets: {listed(list(tables))}.",
        )
    fitting = [name for name in visible if _heading(tables[name], column) is not None]
    filled = [name for name in visible if any(any(cells) for _, cells in tables[name])]
    candidates = [sheet] if sheet is not None else fitting or filled
    if not candidates:
        raise DataError(
            f"{obtained.path} に表示されているシートの行がありません（シート: {listed(list(tables))}）。--sheet で指定してください。",
            f"{obtained.path} has no visible sheet with rows (sheets: {listed(list(tables))}); name one with --sheet.",
        )
    obtained.sheet = candidates[0]
    obtained.others = [name for name in tables if name != obtained.sheet]
    _take_table(obtained, tables[obtained.sheet], column)


def _width(table: Sequence[tuple[int, Sequence[str]]]) -> int:
    """Cells of the longest row."""
    return max((len(cells) for _, cells in table), default=0)


def _heading(table: Sequence[tuple[int, Sequence[str]]], column: str | None) -> int | None:
    """Which row of a table is its heading: the first that names a column that asks."""
    for index, (_, cells) in enumerate(table[:_ABOVE]):
        names = [cell.strip() for cell in cells]
        if (column is not None and plain(column) in map(plain, names)) or (column is None and _asking(names)):
            return index
    return None


def _asking(names: Sequence[str]) -> list[str]:
    """The headings that say what is asked: clear ones, else such that name who asks."""
    roles = [(name, role_of(name)) for name in names if name]
    return [name for name, role in roles if role == ("instruction", False)] or [
        name for name, role in roles if role == ("instruction", True)
    ]


def _take_table(obtained: Questions, table: list[tuple[int, list[str]]], column: str | None) -> None:
    """Heading, rows and questions of a table.

    Raises:
        DataError, ConfigError: no column that asks, or several.
    """
    start = _heading(table, column)
    if start is None:
        start = next((index for index, (_, cells) in enumerate(table) if any(cell.strip() for cell in cells)), 0)
    obtained.above = [list(cells) for _, cells in table[:start]]
    obtained.heading_row = table[start][0] if table else 1
    obtained.headings = [cell.strip() for cell in table[start][1]] if table else []
    _choose(obtained, [name for name in obtained.headings if name], column)
    used = [
        obtained.headings.index(name) if name is not None else None
        for name in (obtained.column, obtained.material, obtained.system)
    ]
    for place, (number, cells) in enumerate(table[start + 1 :]):
        obtained.rows.append(list(cells))
        if any(cell.strip() for cell in cells):
            texts = (cells[at].strip() if at is not None and at < len(cells) else "" for at in used)
            _add(obtained, place, number, *texts)


def _choose(obtained: Questions, names: Sequence[str], column: str | None) -> None:
    """Finds the columns that are used.

    Raises:
        ConfigError: `column` is not there. DataError: none asks, or several do.
    """
    path = obtained.path
    found = _asking(names) if column is None else [name for name in names if plain(name) == plain(column)]
    if column is not None and not found:
        raise ConfigError(
            f"--column が {column} ですが、{path} にその列はありません。列: {listed(names)}",
            f"--column is {column}, which is not a column of {path}; columns: {listed(names)}.",
        )
    if not found:
        raise DataError(
            f"{path} のどの列が質問か分かりません（列: {listed(names)}）。--column 列名 で指定するか、1 行目に 質問 という見出しを付けてください。",
            f"{path}: no column is known to ask (columns: {listed(names)}); name it with --column NAME, or write a "
            "heading such as 質問 or question above it.",
        )
    if len(found) > 1:
        raise DataError(
            f"{path} には質問になりうる列が {len(found)} つあります（{listed(found)}）。--column で指定してください。",
            f"{path}: {len(found)} columns may ask ({listed(found)}); choose one with --column.",
        )
    obtained.column = found[0]
    for role in ("input", "system"):
        beside = [name for name in names if name != obtained.column and role_of(name) == (role, False)]
        if len(beside) > 1:
            raise DataError(
                f"{path} の列 {listed(beside)} はどちらも {role} の意味です。使わない方の見出しを変えてください。",
                f"{path}: the columns {listed(beside)} all mean {role}; rename those that are not to be used.",
            )
        setattr(obtained, {"input": "material", "system": "system"}[role], beside[0] if beside else None)


def _add(obtained: Questions, place: int, number: int, text: str, material: str, system: str) -> None:
    broken = UNREADABLE.search(text + material + system) is not None
    obtained.questions.append(Question(f"{obtained.path}:{number}", number, text, material, system, broken))
    obtained.index.append(place)
