"""Values of other tools' files in the type that is meant: `"2e-5"` is a number, `"True"` a truth, `"a, b"` a list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import Reason
from ..shortened import shortened

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "null", "")


class Unfit(Exception):
    """A value that cannot be what its key means; carries the reason, and the key where it is known."""

    def __init__(self, ja: str, en: str, key: str = "") -> None:
        super().__init__(en)
        self.reason = Reason(ja, en)
        self.key = key


def is_off(value: object) -> bool:
    """Whether a value says `not used`: null, false, 0, empty, `none`, `no`."""
    if isinstance(value, str):
        return value.strip().lower() in _FALSE
    return not value


def truth(value: object) -> bool:
    """A truth value, also written as text or as 0 and 1.

    Raises:
        Unfit: it is none.
    """
    word = str(value).strip().lower()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    raise Unfit(f"true か false ではありません（{shortened(value)}）", f"it is {shortened(value)}, not true or false")


def number(value: object) -> float:
    """A number, also written as text (YAML 1.1 reads 2e-5 as text).

    Raises:
        Unfit: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Unfit(f"数値ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a number")
    try:
        obtained = float(str(value).replace("_", ""))
    except ValueError:
        raise Unfit(f"数値ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a number") from None
    if obtained != obtained or obtained in (float("inf"), float("-inf")):
        raise Unfit(f"有限の数ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a finite number")
    return obtained


def whole(value: object) -> int:
    """A whole number; 3.0 and "3" are.

    Raises:
        Unfit: it is none.
    """
    obtained = number(value)
    if obtained != int(obtained):
        raise Unfit(f"整数ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a whole number")
    return int(obtained)


def text(value: object) -> str:
    """A text; numbers become their text, mappings and lists are none.

    Raises:
        Unfit: it is none.
    """
    if isinstance(value, Mapping | list | tuple | bool) or value is None:
        raise Unfit(f"文字列ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a text")
    return str(value).strip()


def names(value: object) -> list[str]:
    """A list of names, also written as one text with commas.

    Raises:
        Unfit: it is none.
    """
    items = value.split(",") if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise Unfit(
            f"名前のリストではありません（{shortened(value)}）", f"it is {shortened(value)}, not a list of names"
        )
    return [name for name in (text(item) for item in items) if name]


def word(value: object) -> str:
    """A word of a choice: lower case, without blanks around it; a truth value is `true` or `false`."""
    return str(value).lower() if isinstance(value, bool) else text(value).lower()


def mapping(value: object) -> dict[str, Any]:
    """A mapping.

    Raises:
        Unfit: it is none.
    """
    if not isinstance(value, Mapping):
        raise Unfit(f"キーと値の組ではありません（{shortened(value)}）", f"it is {shortened(value)}, not a mapping")
    return {str(key): item for key, item in value.items() if item is not None}


def shown(value: object, limit: int = 60) -> str:
    """A value on one line, for a list."""
    line = " ".join(str(value).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
