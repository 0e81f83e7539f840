"""The fields of sections: names, types with and without constraints, nested sections."""

from __future__ import annotations

import dataclasses
import functools
import typing
from typing import Any

from .limits import is_union


def label(cls: type) -> str:
    """The name that users see for a section: `training` for TrainingConfig."""
    return str(getattr(cls, "SECTION", cls.__name__))


def field_path(cls: type, field: object) -> str:
    """The name that users see for a field: `training.batch_size`, but `method` for RunConfig's own."""
    return f"{label(cls)}.{field}" if label(cls) else str(field)


def field_names(cls: type) -> list[str]:
    """The configurable fields of a section, in order."""
    return [field.name for field in dataclasses.fields(cls)]


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """The type of every field of a section, with its constraints."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in field_names(cls)}


@functools.cache
def plain_types(cls: Any) -> dict[str, Any]:
    """The type of every field of a section, without constraints."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in field_names(cls)}


def options_of(hint: Any) -> tuple[Any, ...]:
    """The types that a plain hint joins: (int, None) for `int | None`."""
    return typing.get_args(hint) if is_union(hint) else (hint,)


def section_class(hint: Any) -> type | None:
    """The configuration class that a type hint names, or None."""
    return next(
        (option for option in options_of(hint) if isinstance(option, type) and dataclasses.is_dataclass(option)), None
    )


def fields_of(cls: type, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every field below a section, as path to type hint, sections themselves included."""
    obtained: dict[tuple[str, ...], Any] = {}
    for name, hint in plain_types(cls).items():
        obtained[(*prefix, name)] = hint
        nested = section_class(hint)
        if nested is not None:
            obtained |= fields_of(nested, (*prefix, name))
    return obtained
