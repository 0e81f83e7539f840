"""Files of questions as the server reads them: texts itself, a workbook by a child, which needs a library and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...inference.question_files import Question, Questions
from ...inference.question_files import headings_of as headings_here
from ...inference.question_files import read_questions as read_here
from . import children

_WORKBOOK = ".xlsx"
_SECONDS = 150.0


def read_questions(file: Path, language: str, *, column: str | None = None, sheet: str | None = None) -> Questions:
    """The questions of a file, see inference/question_files.py; of a workbook without its bytes.

    Args:
        language: of refusals.
    """
    if file.suffix.lower() != _WORKBOOK:
        return read_here(file, column=column, sheet=sheet)
    told = _child(file, language, *([] if column is None else ["--column", column]), sheet=sheet)
    return Questions(**told | {"questions": [Question(**one) for one in told["questions"]], "raw": b""})


def headings_of(file: Path, language: str, *, sheet: str | None = None) -> list[str]:
    """The headings of such a file, also where none of them, or several, may ask."""
    if file.suffix.lower() != _WORKBOOK:
        return headings_here(file, sheet=sheet)
    return [str(name) for name in _child(file, language, "--headings", sheet=sheet)]


def _child(file: Path, language: str, *more: str, sheet: str | None) -> Any:
    chosen = [] if sheet is None else ["--sheet", sheet]
    return children.wait(["data", "questions", str(file), *more, *chosen, "--json", "-"], language, _SECONDS)
