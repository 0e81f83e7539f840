"""aift data questions: a workbook of questions as JSON, for the page (aift web), whose server reads no workbooks itself."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from ...errors import localized
from .data_table import check_workbook
from .json_out import json_option, write_json
from .limits import limited

HELP = localized(
    "質問のファイルを、画面（aift web）のために JSON にします。",
    "Writes a file of questions as JSON, for the page (aift web).",
)
_MEMORY, _SECONDS = 4 << 30, 120


def questions(
    file: Path = typer.Argument(..., help=localized("質問のファイル", "the file of questions")),
    column: str | None = typer.Option(None, "--column", help=localized("質問の列", "the column that asks")),
    sheet: str | None = typer.Option(None, "--sheet", help=localized("シートの名前", "name of the sheet")),
    headings: bool = typer.Option(False, "--headings", help=localized("見出しだけ", "the headings only")),
    json_file: str | None = json_option("質問", "the questions"),
) -> None:
    """Reads, within limits of time and memory."""
    with limited(file, _MEMORY, _SECONDS):
        check_workbook(file)
        from ...inference.question_files import headings_of, read_questions

        if headings:
            found: Any = headings_of(file, sheet=sheet)
        else:
            found = asdict(read_questions(file, column=column, sheet=sheet))
            del found["raw"]
    if json_file is not None:
        write_json(json_file, found)
