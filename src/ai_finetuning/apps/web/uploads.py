"""Data that was uploaded, by its id."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...errors import InputNotFoundError
from .site import Site


@dataclass(frozen=True)
class Upload:
    """A file of the user's."""

    path: Path
    shown: str
    columns: dict[str, str] | None = None
    sheet: str | None = None


def find(site: Site, id: str) -> Upload:
    """The upload of an id."""
    for path in (site.data / id).glob("data.*"):
        return Upload(path, path.name)
    raise InputNotFoundError("このデータはありません。", "there is no such data.")
