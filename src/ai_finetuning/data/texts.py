"""JSON Lines, JSON in the shapes that programs write it, and text files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from ..errors import DataError
from ..messages import excerpt
from .bad_rows import BadRow
from .columns import listed, map_columns
from .formats import is_heading
from .rows import File, Row
from .tables import read_delimited

# (number, its text as UTF-8) of a line of a file.
Line = tuple[int, bytes]
# Bytes that go on with a character.
_GOES_ON = bytes(range(0x80, 0xC0))
# Characters of a heading in a text, where it stands among marks that texts have as well.
_HEADING = 20
_ROW_KEYS = ("train", "data", "rows", "examples", "items", "records", "instances")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; a key twice would lose one of its values."""
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if any(key == other for other, _ in pairs[:index]))
        raise BadRow("同じキーが 2 回あります", "a key stands twice", twice)
    return values


def _loads(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique)


def _reason(error: Exception, text: str) -> tuple[str, str]:
    """What is wrong with a JSON text; a comma before a closing bracket by its name."""
    position = getattr(error, "pos", None)
    if position is not None:
        before, after = text[:position].rstrip()[-1:], text[position:].lstrip()[:1]
        if before == "," and after in ("]", "}") or (text[position : position + 1] == "," and "trailing" in str(error)):
            return "閉じ括弧の前に余分なコンマがあります", "a comma too many before a closing bracket"
    if isinstance(error, RecursionError):
        return "入れ子が深すぎます", "nested too deeply"
    return str(error), str(error)


def jsonl_lines(file: File) -> Iterator[Line] | None:
    """The lines of JSON Lines that hold something, not parsed yet; None for a file under this name that is one JSON value."""
    lines = _numbered(file)
    first = next(lines, None)
    if first is not None and _is_whole(file, _text_of(first)):
        return None
    return chain([] if first is None else [first], lines)


def _numbered(file: File) -> Iterator[Line]:
    # Ended by \n alone: U+2028 and U+0085 may stand inside JSON strings.
    for number, raw in enumerate(file.utf8_lines(), start=1):
        if 0x20 < raw[0] < 0x7F or _text_of((number, raw)).strip():
            yield number, raw.removesuffix(b"\n")


def _text_of(line: Line) -> str:
    return line[1].decode("utf-8", "surrogatepass")


def characters_of(line: Line) -> int:
    """Characters of a line."""
    return len(line[1].translate(None, _GOES_ON))


def read_jsonl(file: File) -> Iterator[Row]:
    """Rows of JSON Lines; a whole JSON array or object under this name is read as what it is."""
    lines = jsonl_lines(file)
    if lines is None:
        yield from read_whole(file)
    else:
        yield from parse_lines(lines, file)


def read_whole(file: File) -> Iterator[Row]:
    """Rows of a file of JSON Lines that is one JSON value."""
    file.report.notes.append(("1 つの JSON として読みました", "read as one JSON value"))
    yield from read_json(file)


def _is_whole(file: File, first: str) -> bool:
    """Whether a text is one JSON value rather than one a line."""
    stripped = first.strip()
    if stripped[:1] not in ("[", "{"):
        return False
    try:
        obtained = json.loads(stripped)
    except (ValueError, RecursionError):
        obtained = None  # the value goes on below, or the line is broken
    if isinstance(obtained, dict) or (
        isinstance(obtained, list) and not any(isinstance(item, dict) for item in obtained)
    ):
        return False
    try:
        return isinstance(json.loads(file.text()), list | dict)
    except json.JSONDecodeError as error:
        return error.msg == "Extra data" and _goes_on(stripped)
    except (ValueError, RecursionError):
        return False


def _goes_on(line: str) -> bool:
    """Whether a line is the beginning of an object that other lines end, as programs write it for people."""
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        return line[:1] == "{" and error.pos >= len(line)
    except (ValueError, RecursionError):
        pass
    return False


def _one_after_another(text: str, file: File) -> Iterator[Row]:
    """Rows of objects of several lines each, which no comma parts, as jq writes them.

    Raises:
        DataError: no JSON at some place.
    """
    decoder, at = json.JSONDecoder(object_pairs_hook=_unique), 0
    line, counted = 1, 0
    while at < len(text):
        if text[at].isspace():
            at += 1
            continue
        line, counted = line + text.count("\n", counted, at), at
        try:
            values, at = decoder.raw_decode(text, at)
        except BadRow as bad:
            raise DataError(f"{file.place(line)}: {bad.ja}。", f"{file.place(line)}: {bad.en}.") from None
        except (ValueError, RecursionError) as error:
            ja, en = _reason(error, text)
            number = getattr(error, "lineno", line)
            raise DataError(
                f"{file.report.path} の {number} 行目が JSON として読めません（{ja}）。",
                f"{file.report.path}, line {number}: not valid JSON ({en}).",
            ) from None
        yield from _object(values, file.place(line), file)


def parse_lines(lines: Iterable[Line], file: File) -> Iterator[Row]:
    """Rows of lines that are a JSON object each; others are bad rows."""
    for number, raw in lines:
        line = _text_of((number, raw))
        try:
            yield from _object(_loads(line), file.place(number), file)
        except BadRow as bad:
            file.bad.add(bad, file.place(number))
        except (ValueError, RecursionError) as error:
            ja, en = _reason(error, line)
            bad_line = BadRow(f"JSON として読めません（{ja}）", f"not valid JSON ({en})", line.strip())
            file.bad.add(bad_line, file.place(number))


def _object(values: Any, source: str, file: File) -> Iterator[Row]:
    """A JSON value as a row; anything but an object is a bad row."""
    if isinstance(values, dict):
        yield Row(values, source)
        return
    kind = type(values).__name__
    file.bad.add(
        BadRow(f"{kind} です。行は {{...}} の形にしてください", f"a {kind}; every row must be a {{...}} object"), source
    )


def read_json(file: File) -> Iterator[Row]:
    """Rows of a JSON file: an array, an object that holds one, or a table as pandas and datasets write it.

    Raises:
        DataError: no JSON, a shape that is known but no rows, or several arrays.
    """
    text = file.text()
    try:
        content = _loads(text)
    except BadRow as bad:
        raise DataError(f"{file.report.path}: {bad.ja}。", f"{file.report.path}: {bad.en}.") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            whole = _goes_on(text.lstrip().partition("\n")[0].strip())
            yield from _one_after_another(text, file) if whole else parse_lines(_numbered(file), file)
            return
        ja, en = _reason(error, text)
        line = getattr(error, "lineno", 1)
        raise DataError(
            f"{file.report.path} の {line} 行目が JSON として読めません（{ja}）。",
            f"{file.report.path}, line {line}: not valid JSON ({en}).",
        ) from None
    rows = _rows_of(content, file) if isinstance(content, dict) else content
    if not isinstance(rows, list):
        rows = [rows]
    for number, values in enumerate(rows, start=1):
        yield from _object(values, file.item(number), file)


def _rows_of(content: dict[str, Any], file: File) -> list[Any]:
    """The rows of a JSON object, by its shape."""
    path, notes = file.report.path, file.report.notes
    data = content.get("data")
    if isinstance(data, list) and data and isinstance(data[0], Mapping) and "paragraphs" in data[0]:
        raise DataError(
            f"{path} は SQuAD 形式（data > paragraphs > qas）です。質問・文脈・回答を 1 行ずつの列（question, context, answer）に直してください。",
            f"{path} is in the SQuAD format (data > paragraphs > qas); write question, context and answer as columns of a "
            "row each.",
        )
    table = _split(content, file) or _columns_of(content, file)
    if table is not None:
        return table
    lists = [key for key, value in content.items() if isinstance(value, list) and (not value or _is_object(value[0]))]
    chosen = next(
        (key for key in _ROW_KEYS if isinstance(content.get(key), list)), lists[0] if len(lists) == 1 else None
    )
    if chosen is None and lists:
        raise DataError(
            f"{path} には配列が {len(lists)} つあります（{listed(lists)}）。使うものを 1 つのファイルにしてください。",
            f"{path} holds {len(lists)} arrays ({listed(lists)}); write the one to use to a file of its own.",
        )
    if chosen is None:
        return _by_index(content, file)
    for key in lists:
        count = len(content[key])
        if key != chosen and count:
            name = excerpt(key)
            notes.append((f"読まない配列: {name}（{count} 行）", f"array not read: {name} ({count} rows)"))
    return list(content[chosen])


def _is_object(value: Any) -> bool:
    return isinstance(value, Mapping)


def _split(content: dict[str, Any], file: File) -> list[Any] | None:
    """The rows of pandas' to_json(orient='split').

    Raises:
        DataError: a row of another length than the list of columns.
    """
    columns, data = content.get("columns"), content.get("data")
    if not isinstance(columns, list) or not isinstance(data, list):
        return None
    odd = next((number for number, row in enumerate(data, 1) if not _has_length(row, len(columns))), None)
    if odd is not None:
        raise DataError(
            f"{file.item(odd)}: 値の数が columns の {len(columns)} 個と合いません。",
            f"{file.item(odd)}: the row does not have the {len(columns)} values that `columns` names.",
        )
    file.report.notes.append(
        ("pandas の to_json(orient='split') として読みました", "read as pandas' to_json(orient='split')")
    )
    return [dict(zip(map(str, columns), row, strict=True)) for row in data]


def _has_length(row: Any, length: int) -> bool:
    return isinstance(row, list) and len(row) == length


def _columns_of(content: dict[str, Any], file: File) -> list[Any] | None:
    """The rows of an object whose keys are columns, or the one row that it is; None for another object."""
    names, values, notes = [str(key) for key in content], list(content.values()), file.report.notes
    if not values or not is_heading(names, file.columns):
        return None
    if all(map(_is_object, values)) and len({tuple(value) for value in values}) == 1:
        notes.append(("pandas の to_json（列ごと）として読みました", "read as pandas' to_json (by columns)"))
        return [{name: content[name][index] for name in names} for index in values[0]]
    lists = all(isinstance(value, list) and not any(map(_is_object, value)) for value in values)
    if lists and len({len(value) for value in values}) == 1:
        notes.append(("列ごとのリストとして読みました", "read as a list for each column"))
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    return [content]


def _by_index(content: dict[str, Any], file: File) -> list[Any]:
    """The rows of pandas' to_json(orient='index'), or the object as one row."""
    values = list(content.values())
    if values and all(_is_object(value) and is_heading([str(key) for key in value], file.columns) for value in values):
        note = ("pandas の to_json(orient='index') として読みました", "read as pandas' to_json(orient='index')")
        file.report.notes.append(note)
        return values
    return [content]


def _heads_table(cells: Sequence[str], file: File) -> bool:
    """Whether a line's cells are headings of questions and answers, which no text begins with."""
    names = [cell.strip().strip('"') for cell in cells]
    if file.columns:
        return len(names) > 1 and is_heading(names, file.columns)
    if not all(len(name) <= _HEADING for name in names):
        return False
    try:
        return {"instruction", "output"} <= map_columns(names).keys()
    except DataError:  # two columns of one role
        return False


def _is_row(line: str, file: File) -> bool:
    """Whether a line is an object whose keys are columns."""
    if line.strip()[:1] != "{":
        return False
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(values, dict) and is_heading([str(key) for key in values], file.columns)


def read_text(file: File) -> Iterator[Row]:
    """Documents parted by blank lines; a file without blank lines holds one document a line. Tabs: Excel's Unicode
    text. A first line that heads a table, or is an object with columns, tells what the others are.
    """
    first = next((line for line in file.lines(None) if line.strip()), "")
    if (file.report.encoding or "").startswith("utf-16") and "\t" in first:
        yield from read_delimited(file, ("\t",))
        return
    mark = next((mark for mark in "\t,;|" if _heads_table(first.split(mark), file)), None)
    if mark is not None:
        file.report.notes.append(("1 行目が見出しなので、表として読みました", "read as a table: line 1 is a heading"))
        yield from read_delimited(file, (mark,))
        return
    if _is_row(first, file):
        file.report.notes.append(("JSON Lines として読みました", "read as JSON Lines"))
        yield from read_jsonl(file)
        return
    # What stands behind the last line end is no blank line.
    blank = any(not line.strip() for line in file.lines(None) if line.endswith("\n"))
    start = 1
    block: list[str] = []
    for number, line in enumerate(chain(file.lines(None), [""]), start=1):
        if line.strip():
            start = start if block else number
            block.append(line.removesuffix("\n"))
        if block and (not blank or not line.strip()):
            yield Row({"text": "\n".join(block)}, file.place(start))
            block = []
