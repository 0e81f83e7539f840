"""Keyword arguments that are grouped into a TypedDict, refused at run time too where there is none of that name."""

from __future__ import annotations

from collections.abc import Mapping


def validate_options(options: Mapping[str, object], known: type, function: str) -> None:
    """Raises TypeError, as Python does, for an option that a TypedDict does not name."""
    for name in options:
        if name not in known.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
