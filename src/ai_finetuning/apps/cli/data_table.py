"""aift data table: a file examined and written as a folder that the page reads, a page of rows at a time.

A child of the page's server; a file of a stranger takes down nothing but this process.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import typer

from ...errors import DataError, ToolkitError, localized
from .json_out import json_option, not_written, write_json
from .limits import limited

HELP = localized(
    "ファイルを調べ、画面（aift web）が少しずつ読むフォルダーにします。",
    "Examines a file and writes the folder that the page (aift web) reads.",
)
# What a workbook may unpack to: in all, how many times its size beyond what is free, and how many parts.
_UNPACKED, _TIMES, _FREE, _PARTS = 512 << 20, 200, 32 << 20, 5000
_MEMORY, _SECONDS = 4 << 30, 300
_SLOW = ("似た行が何千もあると長くかかります", "thousands of similar rows take long")


def table(
    context: typer.Context,
    file: Path = typer.Argument(..., help=localized("データのファイル", "the data's file")),
    out: Path = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    json_file: str | None = json_option("結果", "the result"),
) -> None:
    """Examines and writes, within limits of time and memory."""
    try:
        with limited(file, _MEMORY, _SECONDS, _SLOW):
            check_workbook(file)
            from ...config.load import load_config
            from ...data.doctor.table import write_table

            data = load_config(None, list(context.args)).data
            out.mkdir(mode=0o700)
            summary = write_table(file, out, columns=data.columns, sheet=data.sheet)
    except ToolkitError:  # some are OSErrors too
        raise
    except OSError as error:
        raise not_written(out, error) from None
    if json_file is not None:
        write_json(json_file, summary)


def check_workbook(file: Path) -> None:
    """Refuses a workbook that says of itself that it unpacks to far more than it is; nothing is unpacked for that.

    Raises:
        DataError: such a workbook, or none at all.
    """
    if file.suffix.lower() != ".xlsx":
        return
    from ...data.rows import parsing

    try:
        stream = file.open("rb")
    except OSError:  # why it cannot be read is said where it is read
        return
    hint = ("Excel で .xlsx に保存し直してください。", " Save it as .xlsx again.")
    with stream, parsing(str(file), "Excel (.xlsx)", hint), zipfile.ZipFile(stream) as parts:
        sizes = [(item.file_size, item.compress_size) for item in parts.infolist()]
    whole = sum(size for size, _ in sizes)
    packed = file.stat().st_size
    if whole > min(_UNPACKED, _FREE + _TIMES * packed) or len(sizes) > _PARTS:
        raise DataError(
            f"{file} は展開すると {whole >> 20:,} MiB（{len(sizes):,} 個の部品）になります。{_UNPACKED >> 20} MiB までの、普通の Excel ファイルにしてください。",
            f"{file} unpacks to {whole >> 20:,} MiB in {len(sizes):,} parts; at most {_UNPACKED >> 20} MiB of an ordinary workbook "
            "are read.",
        )
