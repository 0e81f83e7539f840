"""Files to rows: JSONL, JSON, CSV, TSV, XLSX, Parquet, TXT, `.gz` of these, `datasets` folders and hub ids."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import embedded
from ..errors import DataError, HubError, InputNotFoundError
from ..system.network import endpoint, head, offline
from .bad_rows import BadRow, LeftOut
from .encoding import decode, mojibake


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read, and where it stood (`faq.csv:12`)."""

    values: dict[str, Any]
    source: str


@dataclass
class FileReport(LeftOut):
    """What a file contains."""

    path: str
    kind: str
    encoding: str | None = None
    rows: int = 0


Reader = Callable[[Path, bytes, FileReport, bool], Iterator[Row]]


def _text(raw: bytes, report: FileReport) -> str:
    text, report.encoding = decode(raw, report.path)
    broken = mojibake(text)
    if broken is not None:
        raise DataError(
            f"{report.path} は文字化けしています（{broken}）。元のファイルから作り直してください。文字化けした文では学習しません。",
            f"{report.path} is mojibake ({broken}); recreate it from the original file. The toolkit does not train on "
            "trained on.",
        )
    return text


def _read_jsonl(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
    # Not splitlines(): U+2028 and U+0085 may stand inside JSON strings.
    for number, line in enumerate(_text(raw, report).split("\n"), start=1):
        if not line.strip():
            continue
        source = f"{path.name}:{number}"
        try:
            values = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            snippet = line.strip()[:60]
            bad = BadRow(f"JSON として読めません（{error}）: {snippet}", f"not valid JSON ({error}): {snippet}")
            report.leave_out(bad, source, skip)
            continue
        yield from _object(values, source, report, skip)


def _object(values: Any, source: str, report: FileReport, skip: bool) -> Iterator[Row]:
    """A JSON value as a row; anything but an object is a bad row."""
    if isinstance(values, dict):
        yield Row(values, source)
        return
    kind = type(values).__name__
    bad = BadRow(f"{kind} です。行は {{...}} の形にしてください", f"a {kind}; every row must be a {{...}} object")
    report.leave_out(bad, source, skip)


def _read_json(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
    text = _text(raw, report)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            yield from _read_jsonl(path, raw, report, skip)
            return
        raise DataError(
            f"{path} の {error.lineno} 行目が JSON として読めません（{error.msg}）。",
            f"{path}, line {error.lineno}: not valid JSON ({error.msg}).",
        ) from None
    if isinstance(content, dict):
        content = next(
            (value for key, value in content.items() if key in ("data", "rows", "train") and isinstance(value, list)),
            [content],
        )
    for number, values in enumerate(content, start=1):
        yield from _object(values, f"{path.name}[{number}]", report, skip)


def _table(rows: Iterator[tuple[int, list[Any]]], path: Path, report: FileReport, skip: bool) -> Iterator[Row]:
    """Rows of a table: the first row with at least two filled cells (or the only column) is the header."""
    header: list[str] | None = None
    for number, cells in rows:
        filled = [cell for cell in cells if cell is not None and str(cell).strip()]
        if not filled:
            continue
        if header is None:
            if len(filled) == 1 and len(cells) > 1:
                continue  # a title above the table, often in merged cells
            header = ["" if cell is None else str(cell).strip() for cell in cells]
            continue
        source = f"{path.name}:{number}"
        if len(cells) > len(header) and any(cells[len(header) :]):
            bad = BadRow(
                f"セルが {len(cells)} 個あり、見出しの {len(header)} 個より多いです",
                f"{len(cells)} cells but only {len(header)} headings",
            )
            report.leave_out(bad, source, skip)
            continue
        yield Row({key: cell for key, cell in zip(header, cells, strict=False) if key}, source)


def _read_delimited(delimiter: str | None) -> Reader:
    def read(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
        text = _text(raw, report)
        mark = delimiter
        if mark is None:
            first = text.split("\n", 1)[0]
            mark = "\t" if "\t" in first and "," not in first else ","
        csv.field_size_limit(2**27)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
        try:
            yield from _table(((reader.line_num, cells) for cells in reader), path, report, skip)
        except csv.Error as error:
            raise DataError(
                f"{path} の {reader.line_num} 行目が CSV として読めません（{error}）。引用符を確認してください。",
                f"{path}, line {reader.line_num}: not valid CSV ({error}); check the quotes.",
            ) from None

    return read


def _read_xlsx(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
    from zipfile import BadZipFile

    import openpyxl

    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
    except (BadZipFile, KeyError, OSError) as error:
        raise DataError(
            f"{path} を Excel ファイルとして読めません（{error}）。.xlsx で保存し直してください。",
            f"{path} cannot be read as an Excel file ({error}); save it as .xlsx again.",
        ) from None
    sheet = book.worksheets[0]
    report.encoding = f"sheet {sheet.title!r}"
    rows = (
        (number, [_excel_cell(cell) for cell in cells])
        for number, cells in enumerate(sheet.iter_rows(values_only=True), 1)
    )
    yield from _table(rows, path, report, skip)


def _excel_cell(cell: Any) -> Any:
    """Excel writes a line end in a cell as _x000D_ plus LF now and then, and whole numbers as floats."""
    if isinstance(cell, str):
        return cell.replace("_x000D_", "")
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell


def _read_parquet(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(io.BytesIO(raw))
    except pyarrow.ArrowInvalid as error:
        raise DataError(
            f"{path} を Parquet として読めません（{error}）。", f"{path} is not valid Parquet ({error})."
        ) from None
    for number, values in enumerate(table.to_pylist(), start=1):
        yield Row(values, f"{path.name}[{number}]")


def _read_txt(path: Path, raw: bytes, report: FileReport, skip: bool) -> Iterator[Row]:
    """Documents parted by blank lines; a file without blank lines holds one document a line. Tabs: Excel's Unicode
    text.
    """
    text = _text(raw, report)
    first = text.lstrip("\ufeff").split("\n", 1)[0]
    if report.encoding == "utf-16" and "\t" in first:
        yield from _read_delimited("\t")(path, raw, report, skip)
        return
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    blank = any(not line.strip() for line in lines[:-1])
    start = 1
    block: list[str] = []
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            start = start if block else number
            block.append(line)
        if block and (not blank or not line.strip()):
            yield Row({"text": "\n".join(block)}, f"{path.name}:{start}")
            block = []


READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_delimited(None),
    ".tsv": _read_delimited("\t"),
    ".xlsx": _read_xlsx,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}


def read_rows(path: str | Path, *, skip_bad_rows: bool = False) -> tuple[list[Row], FileReport]:
    """All rows of a file, an embedded data set, a `datasets` folder or a hub id, and what was found.

    Raises:
        InputNotFoundError: no such file. DataError: a kind, encoding or row that cannot be used. HubError: no such data
            set.
    """
    folder = find_data(path)
    if folder is None:
        return _read_hub(str(path))
    if folder.is_dir():
        return _read_dataset_folder(folder)
    kind = _kind(folder)
    report = FileReport(str(path), kind.removeprefix("."))
    try:
        raw = gzip.decompress(folder.read_bytes()) if folder.suffix == ".gz" else folder.read_bytes()
    except (gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path} の gzip が壊れています（{error}）。", f"{path}: damaged gzip ({error}).") from None
    rows = list(READERS[kind](folder, raw, report, skip_bad_rows))
    report.rows = len(rows)
    if not rows:
        raise DataError(
            f"{path} に使える行がありません（{len(raw)} バイト、読み飛ばし {report.skipped} 行）。",
            f"{path} contains no usable row ({len(raw)} bytes, {report.skipped} rows skipped).",
        )
    return rows, report


def _read_dataset_folder(folder: Path) -> tuple[list[Row], FileReport]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{folder} はフォルダーですが、datasets の save_to_disk の形ではありません（{error}）。",
            f"{folder} is a folder, but not one of datasets' save_to_disk ({error}).",
        ) from None
    return _dataset_rows(loaded, str(folder))


def _dataset_rows(loaded: Any, name: str) -> tuple[list[Row], FileReport]:
    if isinstance(loaded, dict):
        if "train" not in loaded:
            raise DataError(
                f"{name} に train がありません（あるのは {', '.join(loaded)}）。",
                f"{name} has no split `train` (found {', '.join(loaded)}).",
            )
        loaded = loaded["train"]
    rows = [Row(values, f"{Path(name).name}[{number}]") for number, values in enumerate(loaded, start=1)]
    if not rows:
        raise DataError(f"{name} に行がありません。", f"{name} contains no row.")
    return rows, FileReport(name, "datasets", rows=len(rows))


def find_data(path: str | Path) -> Path | None:
    """The file or folder that a name means; None for a hub id. Nothing is read.

    Raises:
        InputNotFoundError: no such file, answered with near names. DataError: a kind of file that cannot be read.
    """
    name = str(path)
    folder = embedded.data_file(name) if embedded.is_embedded(name) else Path(path)
    if folder.is_dir():
        return folder
    if folder.exists():
        if _kind(folder) not in READERS:
            raise DataError(
                f"{path} の種類 {_kind(folder) or '（拡張子なし）'} は読めません。使えるのは {' '.join(READERS)} とその .gz です。",
                f"{path}: files of kind {_kind(folder) or '(no extension)'} cannot be read; known: {' '.join(READERS)} "
                "and .gz of these.",
            )
        return folder
    if name.count("/") == 1 and not folder.suffix and not folder.parent.is_dir() and not name.startswith((".", "/")):
        return None
    names = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
    near = difflib.get_close_matches(folder.name, names, n=3, cutoff=0.5)
    raise InputNotFoundError(
        f"データファイル {name} がありません。"
        + (f"もしかして: {', '.join(near)}" if near else f"（現在のフォルダー: {Path.cwd()}）"),
        f"data file {name} does not exist"
        + (f"; did you mean {', '.join(near)}?" if near else f" (current folder: {Path.cwd()})."),
    )


def _kind(path: Path) -> str:
    """The ending that names a file's kind, without .gz."""
    return (Path(path.stem) if path.suffix == ".gz" else path).suffix.lower()


def _read_hub(name: str) -> tuple[list[Row], FileReport]:
    import datasets

    # The client's own retries would take minutes where the hub does not answer; offline it looks into its cache only.
    answer = None if offline() else head(f"{endpoint()}/api/datasets/{name}")
    if answer is not None and answer.status is None:
        raise HubError(
            f"データセット {name} を取りに行きましたが、{endpoint()} が応答しません（{answer.reason.ja}）。ファイルなら拡張子まで書き、ハブならネットワークか "
            "HF_ENDPOINT を確認してください。",
            f"data set {name} cannot be loaded: {endpoint()} does not answer ({answer.reason.en}). A file needs its "
            "extension; for a hub id check the network or HF_ENDPOINT.",
        )
    try:
        loaded = datasets.load_dataset(name)
    except Exception as error:  # datasets raises many kinds here; all of them mean: no such data, or no hub
        raise HubError(
            f"データセット {name} を取得できません（{str(error).splitlines()[0][:150]}）。ファイルなら拡張子まで書き、ハブならネットワークと名前を確認してください。",
            f"data set {name} cannot be loaded ({str(error).splitlines()[0][:150]}). A file needs its extension; for "
            "a hub id check name and network.",
        ) from None
    return _dataset_rows(loaded, name)
