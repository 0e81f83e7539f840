"""Excel workbooks: the sheet whose heading fits, with numbers and dates as Excel shows them."""

from __future__ import annotations

import datetime
import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import DataError
from .bad_rows import BadRows
from .compression import bounded, limit_of, too_big
from .rows import Content, File, FileReport, Row, parsing
from .tables import heading_row, table

_LOCALE = re.compile(r"\[[^\]]*\]")
_TOKENS = re.compile(
    r'"[^"]*"|\\.|ggge?|yyyy|yy|mmmm|mmm|mm|m|dddd|ddd|dd|d|aaaa|aaa|hh|h|ss|s|am/pm|a/p|[^"\\]', re.IGNORECASE
)
_ENTITY = re.compile(b"<!(?:DOCTYPE|ENTITY)|<\0!\0(?:D\0O\0C|E\0N\0T)")
# Rows of an Excel sheet, and cells that are read of one.
_ROWS, _CELLS = 1_048_576, 20_000_000
_WEEKDAYS = "月火水木金土日"
_ERAS = (
    (datetime.date(2019, 5, 1), "令和"),
    (datetime.date(1989, 1, 8), "平成"),
    (datetime.date(1926, 12, 25), "昭和"),
)


def read_workbook(file: File) -> Iterator[Row]:
    """Rows of one sheet: the one that the user named, else the first visible one whose heading fits; others are named.

    Raises:
        DataError: no workbook, or no such sheet.
    """
    import openpyxl

    path = file.report.path
    with parsing(path, "Excel (.xlsx)", ("Excel で .xlsx に保存し直してください。", " Save it as .xlsx again.")):
        check_parts(file)
        book = openpyxl.load_workbook(io.BytesIO(file.raw), read_only=True, data_only=True)
        sheets = {sheet.title: sheet for sheet in book.worksheets}
        tables = {name: list(shown_rows(sheet, path)) for name, sheet in sheets.items()}
    filled = {
        name: sum(any(cell not in (None, "") for cell in cells) for _, cells in rows) for name, rows in tables.items()
    }
    visible = [name for name, sheet in sheets.items() if sheet.sheet_state == "visible"]
    if file.sheet is not None and file.sheet not in sheets:
        raise DataError(
            f"{path} にシート {file.sheet} がありません（data.sheet）。シート: {', '.join(sheets)}",
            f"{path} has no sheet {file.sheet} (data.sheet); sheets: {', '.join(sheets)}.",
        )
    fitting = [name for name in visible if heading_row(tables[name][:20], file.columns) is not None]
    candidates = (
        [file.sheet] if file.sheet is not None else fitting or [name for name in visible if filled[name]] or visible
    )
    if not candidates:
        raise DataError(
            f"{path} のシートはすべて非表示です。使うシートを data.sheet で指定してください（{', '.join(sheets)}）。",
            f"{path} has hidden sheets only; name the one to read with data.sheet ({', '.join(sheets)}).",
        )
    chosen = candidates[0]
    file.report.encoding = f"sheet {chosen!r}"
    file.report.sheet = chosen
    file.report.sheets = [(name, filled[name], name in fitting) for name in sheets if filled[name]]
    for name in sheets:
        if name != chosen and filled[name]:
            hidden = name not in visible
            file.report.notes.append(
                (
                    f"読まないシート: {name}（{filled[name]} 行{'、非表示' if hidden else ''}）。読むには data.sheet={name}",
                    f"sheet not read: {name} ({filled[name]} rows{', hidden' if hidden else ''}); data.sheet={name} reads it",
                )
            )
    yield from table(iter(tables[chosen]), file)


def sheets_of(path: Path, columns: Mapping[str, str] | None = None) -> list[tuple[str, int, bool]]:
    """(name, filled rows, whether a heading fits) of the visible sheets of a workbook that hold something, in order.

    Raises:
        DataError: no workbook.
    """
    import openpyxl

    file = File(path, Content.of(path.read_bytes()), FileReport(str(path), "xlsx"), BadRows(True), columns)
    with parsing(path.name, "Excel (.xlsx)", ("Excel で .xlsx に保存し直してください。", " Save it as .xlsx again.")):
        check_parts(file)
        book = openpyxl.load_workbook(io.BytesIO(file.raw), read_only=True, data_only=True)
        tables = {
            sheet.title: list(shown_rows(sheet, str(path)))
            for sheet in book.worksheets
            if sheet.sheet_state == "visible"
        }
    filled = {
        name: sum(any(cell not in (None, "") for cell in row) for _, row in rows) for name, rows in tables.items()
    }
    return [
        (name, filled[name], heading_row(rows[:20], columns) is not None)
        for name, rows in tables.items()
        if filled[name]
    ]


def check_parts(file: File) -> None:
    """Refuses a workbook whose parts become too big, or declare XML entities, which grow while they are read.

    Raises:
        DataError: such a workbook.
    """
    limit, refusal = limit_of(len(file.raw)), too_big(file.report.path, len(file.raw))
    with zipfile.ZipFile(io.BytesIO(file.raw)) as parts:
        for item in parts.infolist():
            with parts.open(item) as stream:
                content = bounded(stream, limit, refusal)
            limit -= len(content)
            if item.filename.endswith((".xml", ".rels")) and _ENTITY.search(content):
                raise DataError(
                    f"{file.report.path} は XML の実体（{item.filename}）を宣言しています。Excel はそのようなファイルを作りません。読みません。",
                    f"{file.report.path} declares XML entities ({item.filename}), which Excel never writes; not read.",
                )


def shown_rows(sheet: Any, path: str) -> Iterator[tuple[int, list[Any]]]:
    """(number, cells as Excel shows them) of every row of a sheet.

    Raises:
        DataError: more rows or cells than Excel has.
    """
    cells_read = 0
    sheet.reset_dimensions()  # what a program wrote as the sheet's size may be smaller than the sheet
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        cells_read += len(cells)
        if number > _ROWS or cells_read > _CELLS:
            raise DataError(
                f"{path} のシート {sheet.title} は {number:,} 行目で Excel の上限（{_ROWS:,} 行）か {_CELLS:,} セルを超えています。"
                "不要な行と列を除いてください。",
                f"{path}, sheet {sheet.title}: row {number:,} is beyond Excel's {_ROWS:,} rows or {_CELLS:,} cells; remove "
                "rows and columns that are not needed.",
            )
        yield number, [shown(cell) for cell in cells]


def shown(cell: Any) -> str | None:
    """A cell as Excel shows it: text, whole numbers without .0, percentages, dates by their format, errors by name."""
    value = cell.value
    if value is None:
        return None
    if isinstance(value, str):
        return value.replace("_x000D_", "")  # Excel writes a line end in a cell so now and then, before the LF
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    form = (cell.number_format or "General").split(";")[0]
    if isinstance(value, datetime.date | datetime.time):
        return _date(value, form)
    if isinstance(value, datetime.timedelta):
        return str(value)
    return _number(value, form)


def _number(value: float, form: str) -> str:
    """A number by its format: digits after the point, thousands, per cent, and text around it."""
    bare = _LOCALE.sub("", form)
    match = re.search(r"[#0?][#0?,]*(?:\.([0#?]+))?", bare.replace('"', "\0"))
    if bare in ("General", "@", "") or match is None:
        return (
            str(int(value))
            if isinstance(value, float) and value.is_integer() and abs(value) < 1e15
            else f"{value:.15g}"
        )
    digits = match.group(1) or ""
    number = value * 100 if "%" in bare else value
    written = f"{number:{',' if ',' in match.group() else ''}.{len(digits)}f}"
    whole = match.group().split(".")[0]
    if "," not in whole:
        sign, figures = ("-", written[1:]) if written.startswith("-") else ("", written)
        width = whole.count("0") + (len(figures) - len(figures.split(".")[0]))
        written = sign + figures.zfill(width)
    if digits.endswith("#") and "." in written:
        written = written.rstrip("0").rstrip(".")
    before, after = bare[: match.start()], bare[match.end() :]
    return _literal(before) + written + _literal(after)


def _literal(form: str) -> str:
    """The text that a number format writes around a number."""
    return re.sub(r"[_*].", "", re.sub(r"\\(.)", r"\1", form)).replace('"', "")


def _date(value: datetime.date | datetime.time, form: str) -> str:
    """A date or time by its format; one that is only marked as General or by locale as 2024/4/1."""
    bare = _LOCALE.sub("", form)
    if bare in ("General", "@", "") or not re.search("[ymdhsge]", bare, re.IGNORECASE):
        return str(value)
    tokens = _TOKENS.findall(bare)
    twelve = any(token.lower() in ("am/pm", "a/p") for token in tokens)
    written, clock = [], False
    for index, token in enumerate(tokens):
        lower = token.lower()
        # A month stands after an hour or before a second only where it means minutes.
        if lower in ("m", "mm") and (clock or _before_seconds(tokens[index + 1 :])):
            written.append(f"{getattr(value, 'minute', 0):0{len(lower)}d}")
            clock = False
            continue
        if lower in ("h", "hh"):
            clock = True
        elif lower[0] in "ymdagse" and len(token) > 0 and lower not in ("am/pm", "a/p"):
            clock = clock and lower in ("s", "ss")
        written.append(_part(value, token, twelve))
    return "".join(written)


def _before_seconds(rest: list[str]) -> bool:
    following = next((token.lower() for token in rest if token.lower()[0] in "ymdhs"), "")
    return following in ("s", "ss")


def _part(value: Any, token: str, twelve: bool) -> str:
    lower = token.lower()
    if token.startswith('"') and len(token) > 1:
        return token[1:-1]
    if token.startswith("\\"):
        return token[1:]
    hour = getattr(value, "hour", 0)
    day = value if isinstance(value, datetime.date) else datetime.date(1899, 12, 31)
    era = next(
        ((name, day.year - start.year + 1) for start, name in _ERAS if _plain_date(day) >= start), ("", day.year)
    )
    parts = {
        "yyyy": f"{day.year:04d}",
        "yy": f"{day.year % 100:02d}",
        "mmmm": f"{day:%B}",
        "mmm": f"{day:%b}",
        "mm": f"{day.month:02d}",
        "m": str(day.month),
        "dddd": f"{day:%A}",
        "ddd": f"{day:%a}",
        "dd": f"{day.day:02d}",
        "d": str(day.day),
        "aaaa": f"{_WEEKDAYS[day.weekday()]}曜日",
        "aaa": _WEEKDAYS[day.weekday()],
        "ggge": f"{era[0]}{era[1]}",
        "ggg": era[0],
        "e": str(era[1]),
        "hh": f"{hour % 12 or 12 if twelve else hour:02d}",
        "h": str(hour % 12 or 12 if twelve else hour),
        "ss": f"{getattr(value, 'second', 0):02d}",
        "s": str(getattr(value, "second", 0)),
        "am/pm": "AM" if hour < 12 else "PM",
        "a/p": "A" if hour < 12 else "P",
    }
    return parts.get(lower, "" if token in "_*" else token)


def _plain_date(day: datetime.date) -> datetime.date:
    return day.date() if isinstance(day, datetime.datetime) else day
