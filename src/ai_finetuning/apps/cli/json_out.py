"""`--json FILE|-` of the verbs: one value for programs, and nothing else on standard output."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ...errors import StorageError, localized
from .japanese import Command

STDOUT = "-"
_FLAG = "--json"


def json_option(ja: str, en: str) -> Any:
    """The option of a verb; its text ends with where the JSON goes.

    Args:
        ja, en: what is written.
    """
    return typer.Option(
        None,
        _FLAG,
        metavar="[FILE|-]",
        help=localized(
            f"{ja}を JSON で書くファイル（*.json）。- か省略で標準出力",
            f"file for {en} as JSON (*.json); - or nothing: standard output",
        ),
    )


class WritesJson(Command):
    """A verb whose `--json` may stand without a file: only `-` and names that end with .json are taken for one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with `-` behind a bare `--json`."""
        rest: list[str] = super().parse_args(ctx, _with_places(args))
        return rest


def _with_places(arguments: Sequence[str]) -> list[str]:
    filled = []
    for index, argument in enumerate(arguments):
        filled.append(argument)
        behind = arguments[index + 1] if index + 1 < len(arguments) else ""
        if argument == _FLAG and behind != STDOUT and not behind.lower().endswith(".json"):
            filled.append(STDOUT)
    return filled


def write_json(place: str, value: Any) -> None:
    """Writes a value to a file, or prints it.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(place, json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def write_text(place: str, text: str) -> None:
    """The same of a value that is text already.

    Raises:
        StorageError: the file cannot be written.
    """
    if place == STDOUT:
        print(text, end="")
        return
    from ...system.files import write_in_place

    try:
        write_in_place(Path(place), text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise not_written(Path(place), error) from None


def not_written(path: Path, error: OSError) -> StorageError:
    """The refusal of a file that cannot be written."""
    reason = error.strerror or type(error).__name__
    return StorageError(f"{path} に書けません（{reason}）。", f"{path} cannot be written ({reason}).")
