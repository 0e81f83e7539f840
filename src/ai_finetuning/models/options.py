"""Checks of arguments that several functions take."""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import UsageError


def validate_options(options: Mapping[str, object], known: type, function: str) -> None:
    """Raises TypeError, as Python does, for an option that a TypedDict does not name."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def validate_bits(bits: int | None, name: str, *, sixteen: bool = False) -> None:
    """Raises UsageError for other bits than 4 and 8; None is not quantized.

    Args:
        sixteen: take 16 too, which says that a model is not to be quantized.
    """
    if bits not in (None, 4, 8) and not (sixteen and bits == 16):
        known = ("4、8、16 のどれか", "4, 8 or 16") if sixteen else ("4 か 8 ", "4 or 8")
        raise UsageError(
            f"{name} が {bits} です。{known[0]}にしてください。", f"{name} is {bits}; it must be {known[1]}."
        )
