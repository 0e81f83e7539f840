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
from ._upstream import part_of
from .bad_rows import BadRows
from .cell_formats import NUMBERED, shown_date, shown_number, shown_text
from .compression import bounded, limit_of, too_big
from .rows import Content, File, FileReport, Row, parsing
from .tables import heading_row, table

_HIDDEN_ROW = re.compile(rb'<row\b[^>]*\bhidden="(?:1|true)"')
# A formula that a program wrote; Excel puts its value beside it. An empty text is a value.
_FORMULA = re.compile(rb'<c\b(?![^>]*\bt="str")[^>]*>\s*<f\b(?:[^>]*/>|[^>]*>[^<]*</f>)\s*(?:<v\s*/>|<v></v>)?\s*</c>')
# How a workbook writes control characters.
_ESCAPED = re.compile(r"_x00([01][0-9A-Fa-f])_")
# With these bytes begin files of old versions of Office, and encrypted ones.
_OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENTITY = re.compile(b"<!(?:DOCTYPE|ENTITY)|<\0!\0(?:D\0O\0C|E\0N\0T)")
# Rows of an Excel sheet, and cells that are read of one.
_ROWS, _CELLS = 1_048_576, 20_000_000


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
    if not sheets:
        raise DataError(
            f"{path} に読めるシートがありません。Excel で、ふつうの「Excel ブック（.xlsx）」として保存し直してください（「Strict Open XML」ではなく）。",
            f"{path} has no sheet that can be read. Save it again as an ordinary Excel workbook (.xlsx), not as Strict Open XML.",
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
    file.report.notes += _unseen(file, sheets[chosen])
    yield from table(iter(tables[chosen]), file)


def _unseen(file: File, sheet: Any) -> list[tuple[str, str]]:
    """What is said of a sheet where the reader and Excel do not show the same: hidden rows, formulas without a value."""
    with zipfile.ZipFile(io.BytesIO(file.raw)) as parts:
        content = parts.read(part_of(sheet))
    hidden, formulas = len(_HIDDEN_ROW.findall(content)), len(_FORMULA.findall(content))
    notes = []
    if hidden:
        notes.append(
            (
                f"非表示の行（フィルターで隠れた行も）も読みます: {hidden} 行",
                f"rows that Excel hides, by a filter too, are read as well: {hidden}",
            )
        )
    if formulas:
        notes.append(
            (
                f"値が保存されていない数式のセルは空です: {formulas} 個。Excel で開いて保存し直すと、値が入ります",
                f"cells with a formula whose value is not in the file are empty: {formulas}; open and save it in Excel to have the "
                "values",
            )
        )
    return notes


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
        DataError: such a workbook, and one that is encrypted.
    """
    if file.raw.startswith(_OLE):
        raise DataError(
            f"{file.report.path} はパスワード付きか、古い形式（.xls）のブックです。Excel で開き、パスワードを外して .xlsx で保存し直してください。",
            f"{file.report.path} is a workbook with a password, or in the old format (.xls). Open it in Excel, and save it as .xlsx "
            "without a password.",
        )
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
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    style = getattr(cell, "style_array", None)
    form = NUMBERED.get(style.numFmtId if style is not None else 0) or cell.number_format or "General"
    if isinstance(value, str):
        return shown_text(_ESCAPED.sub(_unescaped, value) if "_x00" in value else value, form)
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return shown_date(value, form, _serial(value) if ";" in form else None)
    return shown_number(value, form, lambda number: _moment(number, cell))


def _unescaped(match: re.Match[str]) -> str:
    """A control character; Excel writes a line end in a cell as two of them now and then, LF behind CR."""
    return "" if match.group(1).upper() == "0D" else chr(int(match.group(1), 16))


def _serial(value: datetime.date | datetime.time | datetime.timedelta) -> float:
    """Excel's number of a date, by which the conditions of formats choose."""
    day = datetime.timedelta(days=1)
    if isinstance(value, datetime.timedelta):
        return value / day
    if isinstance(value, datetime.time):
        return datetime.timedelta(hours=value.hour, minutes=value.minute, seconds=value.second) / day
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime(value.year, value.month, value.day)
    return (moment - datetime.datetime(1899, 12, 30)) / day


def _moment(number: float, cell: Any) -> datetime.date | datetime.time | None:
    """The date that a number means; None where it means none."""
    from openpyxl.utils.datetime import from_excel

    try:
        return from_excel(number, cell.parent.parent.epoch)  # type: ignore[no-any-return]
    except (OverflowError, ValueError):
        return None
