"""What ships inside the package: data sets by the name `embedded:NAME`, no hub and no download."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputNotFoundError

PREFIX = "embedded:"
_HERE = Path(__file__).parent


def is_embedded(name: str) -> bool:
    """Whether a name means something that ships in the package."""
    return name.startswith(PREFIX)


def data_file(name: str) -> Path:
    """The file of `embedded:NAME` (its training rows) or `embedded:NAME/PART`.

    Raises:
        InputNotFoundError: with the names that there are.
    """
    wanted, _, part = name.removeprefix(PREFIX).partition("/")
    file = _HERE / wanted / f"{part or 'train'}.jsonl"
    known = {path.relative_to(_HERE).with_suffix("").as_posix(): path for path in sorted(_HERE.glob("*/*.jsonl"))}
    if file not in known.values():
        names = ", ".join(PREFIX + key for key in known)
        raise InputNotFoundError(
            f"内蔵データ {name} はありません。あるのは {names} です。",
            f"there is no embedded data {name}; there are {names}.",
        )
    return file
