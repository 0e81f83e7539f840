"""What ships inside the package: a model and a data set by the name `embedded:NAME`, no hub and no download."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputNotFoundError

PREFIX = "embedded:"
MODEL = "embedded:kotoha-tiny"
_HERE = Path(__file__).parent


def is_embedded(name: str) -> bool:
    """Whether a name means something that ships in the package."""
    return name.startswith(PREFIX)


def data_file(name: str) -> Path:
    """The file of `embedded:NAME` (its training rows) or `embedded:NAME/PART`.

    Raises:
        InputNotFoundError: with the names that there are.
    """
    expected, _, part = name.removeprefix(PREFIX).partition("/")
    known = {path.relative_to(_HERE).with_suffix("").as_posix(): path for path in sorted(_HERE.glob("*/*.jsonl"))}
    return _known(name, f"{expected}/{part or 'train'}", known, ("データ", "data"))


def model_folder(name: str) -> Path:
    """The folder of the model `embedded:NAME`, as transformers, sentencepiece and other tools read it.

    Raises:
        InputNotFoundError: with the names that there are.
    """
    known = {path.parent.name: path.parent for path in sorted(_HERE.glob("*/config.json"))}
    return _known(name, name.removeprefix(PREFIX), known, ("モデル", "model"))


def questions(part: str) -> list[tuple[str, str]]:
    """(question, answer) of every row of `train`, `held_out_phrasings` or `held_out_facts` of kotoha-qa, kind by kind."""
    talks = [row["messages"] for row in _rows(f"embedded:kotoha-qa/{part}")]
    return [(talk[0]["content"], talk[1]["content"]) for talk in talks]


def texts() -> list[str]:
    """The documents of kotoha-text: everyday prose and facts, five sentences each."""
    return [row["text"] for row in _rows("embedded:kotoha-text")]


def _rows(name: str) -> list[dict[str, Any]]:
    with data_file(name).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _known(name: str, key: str, known: dict[str, Path], kind: tuple[str, str]) -> Path:
    if key not in known:
        names = ", ".join(PREFIX + other for other in known) or "-"
        raise InputNotFoundError(
            f"同梱の{kind[0]} {name} はありません。あるのは {names} です。",
            f"there is no embedded {kind[1]} {name}; there are: {names}.",
        )
    return known[key]
