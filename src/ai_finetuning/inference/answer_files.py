"""Answers beside their questions: the file as it was, with a column more; no cell of it becomes a formula."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.columns import listed, plain
from ..data.encoding import UNREADABLE
from ..data.rows import parsing
from ..errors import ConfigError, DataError, InputNotFoundError, StorageError
from ..messages import notice, on_one_line, warn
from ..system.files import write_in_place
from .question_files import KINDS, Questions

# What a spreadsheet program takes for the beginning of a formula, full-width forms as Japanese ones do.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
# Characters that an Excel cell holds.
_CELL = 32_767
_WIDTH = 60
# Cells of a table that is written, and such that are merged with others.
_CELLS, _MOST_MERGED = 30_000_000, 1_000_000
_MERGED = re.compile(rb"<[^<>]*mergeCell\s[^<>]*?ref\s*=\s*[\"']([^\"'<>]*)[\"']")
_NUMBER = re.compile(r"[+-]?[0-9][0-9,]*(\.[0-9]+)?([eE][+-]?[0-9]+)?%?")


def validate_file(option: str, out: Path, kinds: Sequence[str], read: Path, *, overwrite: bool) -> str:
    """The kind of a file that a command writes from another one.

    Args:
        option: that names it.
        kinds: endings that it may have.
        read: the file that the command reads.
        overwrite: an existing file may be replaced.

    Raises:
        ConfigError: another kind, the file that is read, or an existing file. InputNotFoundError: no such folder.
    """
    kind = {".ndjson": ".jsonl"}.get(out.suffix.lower(), out.suffix.lower())
    if kind not in kinds:
        raise ConfigError(
            f"{option} が {out} です。{' '.join(kinds)} {'のどれか' if len(kinds) > 1 else 'のファイル'}にしてください。",
            f"{option} is {out}; it must end in {'one of ' if len(kinds) > 1 else ''}{' '.join(kinds)}.",
        )
    if not out.parent.is_dir():
        raise InputNotFoundError(
            f"{option} のフォルダー {out.parent} がありません。",
            f"the folder {out.parent} of {option} does not exist.",
        )
    if out.is_dir() or (out.exists() and out.samefile(read)):
        raise ConfigError(
            f"{option} の {out} はフォルダーか、読むファイルそのものです。別の名前にしてください。",
            f"{option} is {out}, a folder or the file itself that is read; choose another name.",
        )
    if out.exists() and not overwrite:
        raise ConfigError(
            f"{out} はすでにあります。別の名前にするか、--overwrite で置き換えてください。",
            f"{out} exists; choose another name, or replace it with --overwrite.",
        )
    return kind


def validate_target(out: Path, questions: Questions, columns: Sequence[str], *, overwrite: bool) -> str:
    """The kind of file to write.

    Args:
        out: where the answers go.
        columns: headings of the columns to write.
        overwrite: an existing file may be replaced.

    Raises:
        ConfigError: a kind that cannot be written, the file of questions itself, an existing file, or a column that
            holds something already. InputNotFoundError: no such folder.
    """
    kind = validate_file("--out", out, KINDS, Path(questions.path), overwrite=overwrite)
    _validate_size(kind, questions, len(columns))
    for column in columns:
        same = [name for name in questions.headings if plain(name) == plain(column)]
        filled = questions.filled(same[0]) if same else []
        if filled:
            raise ConfigError(
                f"{questions.path} の列 {same[0]} には {len(filled)} 行に値があります（{filled[0].number} 行目など）。上書きしません。--answer-column で"
                "別の列名を指定してください。",
                f"the column {same[0]} of {questions.path} holds something in {len(filled)} rows (such as row "
                f"{filled[0].number}) and is not overwritten; name another one with --answer-column.",
            )
    return kind


def _validate_size(kind: str, questions: Questions, columns: int) -> None:
    """Refuses, before anything is answered, a table that grows while it is written, and a workbook that cannot be.

    Raises:
        DataError: such a file.
    """
    rows = questions.above + questions.rows if questions.kind != ".jsonl" else []
    width = max([len(questions.headings), *map(len, rows)]) + columns
    if kind != ".jsonl" and width * len(questions.rows) > _CELLS:
        raise DataError(
            f"{questions.path} は {width:,} 列 {len(questions.rows):,} 行の表になり、{_CELLS:,} セルを超えます。質問以外の列を除いてください。",
            f"{questions.path} becomes a table of {width:,} columns and {len(questions.rows):,} rows, more than {_CELLS:,} "
            "cells; remove columns that are not needed.",
        )
    if kind == questions.kind == ".xlsx":
        hint = ("Excel で .xlsx に保存し直してください。", " Save it as .xlsx again.")
        with parsing(questions.path, "Excel (.xlsx)", hint):
            _opened(questions).save(io.BytesIO())


def _opened(questions: Questions) -> Any:
    """The workbook to write into.

    Raises:
        DataError: merged cells that take more than a sheet that people work with; each would be made.
    """
    import openpyxl
    from openpyxl.utils.cell import range_boundaries

    merged = 0
    with zipfile.ZipFile(io.BytesIO(questions.raw)) as parts:
        for name in parts.namelist():
            for found in _MERGED.finditer(parts.read(name)) if name.endswith(".xml") else ():
                left, top, right, bottom = range_boundaries(found[1].decode())
                merged += ((right or 16_384) - (left or 1) + 1) * ((bottom or 1_048_576) - (top or 1) + 1)
    if merged > _MOST_MERGED:
        raise DataError(
            f"{questions.path} の結合されたセルは {merged:,} 個分あります（上限 {_MOST_MERGED:,}）。結合を解除してください。",
            f"{questions.path}: {merged:,} cells are merged, more than {_MOST_MERGED:,}; undo that.",
        )
    return openpyxl.load_workbook(io.BytesIO(questions.raw))


def write_answers(
    out: Path, kind: str, questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]
) -> None:
    """Writes the file of questions with its answers.

    Args:
        out, kind: from validate_target.
        columns: headings of the answers' columns.
        answers: for each question a text for each column; empty ones stay empty cells.

    Raises:
        StorageError: it cannot be written; what was there is as it was. DataError: the answer's cell is merged with
            others.
    """
    if kind == ".xlsx":
        content = _workbook(questions, columns, answers)
    elif kind == ".jsonl":
        content = _json_lines(questions, columns, answers)
    else:
        content = _delimited(kind, questions, columns, answers)
    try:
        write_in_place(out, content)
    except OSError as error:
        raise StorageError(
            f"{out} に書けません（{error.strerror or error}）。空き容量と権限を確認して、同じコマンドをもう一度実行してください。",
            f"{out} cannot be written ({error.strerror or error}); check space and rights, then run the same command "
            "again.",
        ) from error


def no_formula(text: str) -> str:
    """A text that no spreadsheet program takes for a formula when it opens a CSV file."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _no_formula_but_numbers(text: str) -> str:
    """The same for a cell of the questions: `-5` stays a number."""
    return text if _NUMBER.fullmatch(text) else no_formula(text)


def without_formulas(questions: Questions) -> bytes:
    """A CSV or TSV file for a spreadsheet program: its bytes with a ' in front of every cell that would become a formula."""
    whole = [[_no_formula_but_numbers(cell) for cell in cells] for cells in (*_table(questions)[0], *questions.rows)]
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=questions.delimiter, lineterminator=questions.line_end).writerows(whole)
    return _encoded(stream.getvalue(), questions.encoding or "utf-8-sig")


def with_formulas(text: str) -> str:
    """An answer as it was before no_formula()."""
    bare = text.removeprefix("'")
    return bare if no_formula(bare) == text else text


def _table(questions: Questions) -> tuple[list[list[str]], list[list[str]]]:
    """(rows up to the heading, rows below it) as text."""
    if questions.kind != ".jsonl":
        return [*questions.above, questions.headings], questions.rows
    rows = []
    for values in questions.rows:
        cells = [values.get(name) for name in questions.headings]
        rows.append(
            [
                "" if cell is None else cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
                for cell in cells
            ]
        )
    return [questions.headings], rows


def _places(headings: Sequence[str], columns: Sequence[str], width: int) -> list[int]:
    """Where the answers' columns stand: below a heading that is there, which is empty, else behind everything."""
    places: list[int] = []
    for column in columns:
        there = next((place for place, name in enumerate(headings) if plain(name) == plain(column)), None)
        places.append(max([width, *(place + 1 for place in places)]) if there is None else there)
    return places


def _with_columns(
    questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]
) -> tuple[list[list[str]], set[tuple[int, int]]]:
    """(the table with the answers, where they stand in it: row and column)."""
    top, rows = _table(questions)
    whole = [list(row) for row in (*top, *rows)]
    places = _places(questions.headings, columns, max(map(len, whole)))
    put: set[tuple[int, int]] = set()

    def write(row: int, place: int, text: str) -> None:
        whole[row] += [""] * (place + 1 - len(whole[row]))
        whole[row][place] = text

    for place, column in zip(places, columns, strict=True):
        if place >= len(questions.headings):
            write(len(top) - 1, place, column)
    for index, texts in zip(questions.index, answers, strict=True):
        for place, text in zip(places, texts, strict=True):
            write(len(top) + index, place, text)
            put.add((len(top) + index, place))
    return whole, put


def _delimited(kind: str, questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]) -> bytes:
    """CSV or TSV in the encoding, with the delimiter and line ends of the questions where they are such a file."""
    whole, put = _with_columns(questions, columns, answers)
    escaped = sum(no_formula(whole[row][place]) != whole[row][place] for row, place in put)
    for row, place in put:
        whole[row][place] = no_formula(whole[row][place])
    if questions.kind not in (".csv", ".tsv"):  # what was a text there would become a formula here
        whole = [
            [cell if (row, place) in put else _no_formula_but_numbers(cell) for place, cell in enumerate(cells)]
            for row, cells in enumerate(whole)
        ]
    if escaped:
        notice(
            f"= + - @ などで始まる回答 {escaped} 件は、表計算ソフトで数式にならないよう先頭に ' を付けました。",
            f"{escaped} answers begin with = + - @ or the like; a ' in front keeps them from becoming formulas.",
        )
    text = questions.kind in (".csv", ".tsv")
    if questions.others:
        notice(
            f"{kind} にはシート {questions.sheet} だけを書きます（ほかのシート: {listed(questions.others)}）。",
            f"a {kind} holds the sheet {questions.sheet} only (other sheets: {listed(questions.others)}).",
        )
    delimiter = questions.delimiter if text and questions.kind == kind else {".tsv": "\t"}.get(kind, ",")
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter, lineterminator=questions.line_end if text else "\r\n").writerows(whole)
    return _encoded(stream.getvalue(), (questions.encoding if text else None) or "utf-8-sig")


def _encoded(text: str, encoding: str) -> bytes:
    """A text in an encoding; in UTF-8 with BOM, which Excel opens as well, where the encoding lacks a character."""
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError as error:
        missing = text[error.start : error.start + 1]
    name = on_one_line(missing)
    warn(
        f"回答の文字「{name}」（U+{ord(missing):04X}）は {encoding} にないため、UTF-8（BOM 付き）で書きます。",
        f"the character {name} (U+{ord(missing):04X}) of an answer is not in {encoding}; writing UTF-8 with BOM.",
    )
    return UNREADABLE.sub("\ufffd", text).encode("utf-8-sig")


def _json_lines(questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]) -> bytes:
    """An object for each question: its own, or the table's row under its headings."""
    lines = []
    for place, texts in enumerate(answers):
        row = questions.values(place)
        there = {plain(name): name for name in row}
        added = {there.get(plain(column), column): text for column, text in zip(columns, texts, strict=True)}
        lines.append(json.dumps({**row, **added}, ensure_ascii=False) + "\n")
    return UNREADABLE.sub("\ufffd", "".join(lines)).encode("utf-8")


def _workbook(questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]) -> bytes:
    """The workbook as it was with the answers as strings in it; of another file a new workbook of strings."""
    import openpyxl

    if questions.kind == ".xlsx":
        book = _opened(questions)
        sheet: Any = book[str(questions.sheet)]
        _say_left_out(questions)
        _fill(sheet, questions, columns, answers)
    else:
        book = openpyxl.Workbook()
        sheet = book.active
        whole, _ = _with_columns(questions, columns, answers)
        for row, cells in enumerate(whole, start=1):
            for place, text in enumerate(cells, start=1):
                if text:
                    _set(sheet.cell(row, place), text)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def _fill(sheet: Any, questions: Questions, columns: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    from openpyxl.styles import Alignment
    from openpyxl.utils import get_column_letter

    tables = [*questions.above, questions.headings, *questions.rows]
    used = [place for row in tables for place, text in enumerate(row, start=1) if text]
    merged = [area.max_col for area in sheet.merged_cells.ranges]
    places = _places(questions.headings, columns, max([*used, *merged, len(questions.headings)]))
    for place, column in zip(places, columns, strict=True):
        if place >= len(questions.headings):
            _set(sheet.cell(questions.heading_row, place + 1), column)
            sheet.column_dimensions[get_column_letter(place + 1)].width = _WIDTH
    for question, texts in zip(questions.questions, answers, strict=True):
        for place, text in zip(places, texts, strict=True):
            cell = sheet.cell(question.number, place + 1)
            if type(cell).__name__ == "MergedCell":
                raise DataError(
                    f"{question.place} の回答のセルは結合されています。--answer-column で別の列名を指定してください。",
                    f"{question.place}: the cell of the answer is merged with others; name another column with "
                    "--answer-column.",
                )
            if text:
                _set(cell, text)
                cell.alignment = Alignment(wrap_text=True, vertical="top")


def _set(cell: Any, text: str) -> None:
    """Puts a text into a cell as a string, whatever it begins with, also after somebody has edited the cell."""
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    clean = UNREADABLE.sub("\ufffd", ILLEGAL_CHARACTERS_RE.sub("\ufffd", text))
    if len(clean) > _CELL:
        warn(
            f"{cell.coordinate}: {len(clean):,} 文字は Excel のセルの上限 {_CELL:,} 文字を超えるため、そこまでを書きます。全文は --out に .csv か .jsonl "
            "を指定すると残ります。",
            f"{cell.coordinate}: {len(clean):,} characters are more than the {_CELL:,} of an Excel cell; the rest is left "
            "out (a .csv or .jsonl holds all of it).",
        )
    cell.value = clean[:_CELL]
    cell.data_type = "s"
    cell.quotePrefix = clean.startswith(_FORMULA)


def _say_left_out(questions: Questions) -> None:
    """One line on what is not carried over when a workbook is written again."""
    with zipfile.ZipFile(io.BytesIO(questions.raw)) as parts:
        drawn = any(name.startswith("xl/drawings/") and name.endswith(".xml") for name in parts.namelist())
    if drawn:
        warn(
            f"{questions.path} の図形やグラフの一部は、書き出したファイルに残らないことがあります。",
            f"some shapes and charts of {questions.path} may be missing in what is written.",
        )
