"""The manifest of a model's folder that `aift bundle` made: which model it is, and what every file must be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from ..errors import DataError
from ..system.files import read_bounded

MANIFEST = "bundle.json"
_MAX_BYTES = 1 << 20
# A file beside the manifest, or one level below it; never a path out of the folder.
_NAME = re.compile(r"(?:additional_chat_templates/)?[^/\\:\x00-\x1f]+")
_STRICT = ConfigDict(extra="forbid")
_Digest = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True, config=_STRICT)
class BundledFile:
    """One file: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: _Digest


@dataclass(frozen=True, config=_STRICT)
class Bundle:
    """What a manifest says.

    Attributes:
        model: hub id, `embedded:NAME`, or the name of the folder that was copied.
        revision: the hub's commit; None for a folder.
        licence: as its card or the catalog names it; None where neither does.
        created: day, as YYYY-MM-DD.
        toolkit: version that made it.
        files: by their path in the folder.
    """

    model: str
    revision: str | None
    licence: str | None
    created: str
    toolkit: str
    files: dict[str, BundledFile]


def read_bundle(folder: Path) -> Bundle | None:
    """The manifest of a folder, None where there is none.

    Raises:
        DataError: it is damaged, or names files out of the folder.
    """
    path = folder / MANIFEST
    try:
        text = read_bounded(path, _MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    try:
        bundle = TypeAdapter(Bundle).validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:200]) from error
    for name in bundle.files:
        if not _NAME.fullmatch(name) or name.split("/")[-1] in (".", "..", MANIFEST):
            raise _damaged(path, repr(name[:80]))
    return bundle


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} を読めません（{why}）。持ち込み元でもう一度 aift bundle を実行してください。",
        f"{path} cannot be read ({why}); run aift bundle again where it came from.",
    )
