"""Files that a run file names: looked for where it says, beside it, and in the folders above it."""

from __future__ import annotations

from pathlib import Path

from ..yaml_text import MAX_BYTES

_LEVELS = 4


def places(folder: Path) -> list[Path]:
    """The working folder, the run file's folder and those above it: what names in a run file are relative to."""
    return [Path(), folder, *list(folder.resolve().parents)[:_LEVELS]]


def find_beside(folder: Path, name: str) -> Path | None:
    """The file that a run file in `folder` means by `name`, at most 1 MiB, or None."""
    for base in places(folder):
        for path in (base / name, base / Path(name).name):
            if path.is_file() and path.stat().st_size <= MAX_BYTES:
                return path
    return None
