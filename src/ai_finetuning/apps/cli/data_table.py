"""aift data table: a file examined and written as a folder that the page reads, a page of rows at a time.

A child of the page's server; a file of a stranger takes down nothing but this process.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import typer

from ...errors import DataError, ToolkitError, localized
from .json_out import json_option, not_written, write_json

HELP = localized(
    "ファイルを調べ、画面（aift web）が少しずつ読むフォルダーにします。",
    "Examines a file and writes the folder that the page (aift web) reads.",
)
# What a workbook may unpack to: in all, how many times its size beyond what is free, and how many parts.
_UNPACKED, _TIMES, _FREE, _PARTS = 512 << 20, 200, 32 << 20, 5000
_MEMORY, _SECONDS = 4 << 30, 300


class OutOfTime(BaseException):
    """The seconds are over. No error of a row or of a file: what collects those does not take it for one and go on."""


def table(
    context: typer.Context,
    file: Path = typer.Argument(..., help=localized("データのファイル", "the data's file")),
    out: Path = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    json_file: str | None = json_option("結果", "the result"),
) -> None:
    """Examines and writes, within limits of time and memory."""
    try:
        limit(_MEMORY, _SECONDS)
        check_workbook(file)
        from ...config.load import load_config
        from ...data.doctor.table import write_table

        data = load_config(None, list(context.args)).data
        out.mkdir(mode=0o700)
        summary = write_table(file, out, columns=data.columns, sheet=data.sheet)
    except OutOfTime:
        raise DataError(
            f"調べるのに {_SECONDS} 秒を超える計算が要るため、やめました。ファイルを分けてください（似た行が何千もあると長くかかります）。",
            f"examining it takes more than {_SECONDS} seconds of computing; divide the file (thousands of similar rows take "
            "long).",
        ) from None
    except MemoryError:
        raise DataError(
            f"{file} を読むのに {_MEMORY >> 30} GiB を超えるメモリーが要ります。ファイルを分けてください。",
            f"{file} takes more than {_MEMORY >> 30} GiB of memory to read; divide it.",
        ) from None
    except ToolkitError:  # some are OSErrors too
        raise
    except OSError as error:
        raise not_written(out, error) from None
    if json_file is not None:
        write_json(json_file, summary)


def limit(memory: int, seconds: int) -> None:
    """Bounds this process, where the operating system can: beyond the memory Python raises MemoryError, beyond the seconds
    of computing OutOfTime comes out of whatever is at work.

    Args:
        memory: bytes of addresses.
        seconds: of CPU time.
    """
    if os.name == "nt":
        return
    import resource
    import signal

    def end(*_: object) -> None:
        signal.signal(signal.SIGXCPU, signal.SIG_IGN)  # once is enough
        raise OutOfTime

    signal.signal(signal.SIGXCPU, end)
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


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
