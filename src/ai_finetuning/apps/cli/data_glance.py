"""aift data glance: how many rows a file has, how long they are and what they teach, for the page's first figures.

A child of the page's server, as `aift data table` is.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from ...errors import localized
from .data_table import check_workbook
from .json_out import json_option, write_json
from .limits import limited

HELP = localized(
    "ファイルの行数と長さを、画面（aift web）の概算のために調べます。",
    "Counts a file's rows and characters, for first figures of the page (aift web).",
)
_MEMORY, _SECONDS = 4 << 30, 120


def look(
    context: typer.Context,
    source: str = typer.Argument(..., help=localized("データのファイル", "the data's file")),
    json_file: str | None = json_option("結果", "the result"),
) -> None:
    """Looks, within limits of time and memory."""
    with limited(source, _MEMORY, _SECONDS):
        check_workbook(Path(source))
        from ...config.load import load_config
        from ...data.glance import glance

        data = load_config(None, list(context.args)).data
        found = glance(source, data.columns, data.sheet)
    if json_file is not None:
        write_json(json_file, asdict(found))
