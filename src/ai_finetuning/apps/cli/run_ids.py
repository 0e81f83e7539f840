"""Which run an ID of `aift runs` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...errors import InputNotFoundError, localized

if TYPE_CHECKING:
    from ...runs.listing import RunEntry

ID = typer.Argument(
    ..., metavar="ID", help=localized("aift runs list の ID か、フォルダー", "id of aift runs list, or folder")
)
ROOTS = typer.Option(
    None,
    "--in",
    metavar="FOLDER",
    help=localized(
        "実行を探すフォルダーです（既定はここ。何回でも指定できます）。",
        "where runs are looked for (default: here; may be repeated)",
    ),
)


def places_of(roots: list[Path] | None) -> list[Path]:
    """Where runs are looked for."""
    for folder in roots or ():
        if not folder.is_dir():
            raise InputNotFoundError(
                f"--in の {folder} というフォルダーはありません。", f"--in is {folder}, which is no folder."
            )
    return roots or [Path()]


def entry_of(id: str, roots: list[Path] | None) -> RunEntry:
    """The run that an id or the name of a folder names, or that is in a folder."""
    from ...config.run_folder import RUN
    from ...runs.listing import find_id, list_runs
    from ...runs.recorded import find_run

    places = places_of(roots)
    entries = list_runs(*places)
    named = [entry for entry in entries if entry.id == id] or [entry for entry in entries if entry.path.name == id]
    if len(named) == 1:
        return named[0]
    if not os.path.exists(id):  # which knows of no error: a name may be too long for one
        return find_id(id, places)
    folder = find_run(Path(id)).folder
    for entry in list_runs(folder):
        if entry.path == folder:
            return entry
    raise InputNotFoundError(
        f"{folder / RUN} を読めないため、実行が分かりません。",
        f"{folder / RUN} cannot be read, so that nothing is known of a run there.",
    )
