"""Checks of arguments that several functions take."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError


def validate_options(options: Mapping[str, object], known: type, function: str) -> None:
    """Raises TypeError, as Python does, for an option that a TypedDict does not name."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def validate_bits(bits: int | None, name: str) -> None:
    """Raises UsageError for other bits than 4 and 8; None is not quantized."""
    if bits not in (None, 4, 8):
        raise UsageError(f"{name} が {bits} です。4 か 8 にしてください。", f"{name} is {bits}; it must be 4 or 8.")
