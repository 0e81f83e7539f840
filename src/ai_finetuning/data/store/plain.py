"""Reports as JSON and back: dataclasses, counters, sets, lists and texts by the types that they declare."""

from __future__ import annotations

import types
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def to_plain(value: Any) -> Any:
    """A value as lists, numbers and texts; mappings become lists of pairs, which keep their order and any key."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, dict):
        return [[to_plain(key), to_plain(item)] for key, item in value.items()]
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value


def from_plain(kind: type[_T], value: Any) -> _T:
    """What to_plain() was given, of a declared type.

    Raises:
        KeyError, TypeError, ValueError: a value that is not of this type.
    """
    obtained: _T = _from_plain(kind, value)
    return obtained


def _from_plain(kind: Any, value: Any) -> Any:
    if isinstance(kind, type) and is_dataclass(kind):
        hints = _hints(kind)
        # What a version before did not know keeps its default.
        names = (item.name for item in fields(kind) if item.name in value or not _has_default(item))
        return kind(**{name: _from_plain(hints[name], value[name]) for name in names})
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _from_plain(next(item for item in inner if item is not type(None)), value)
    if origin in (dict, Counter):
        key, item = (inner[0], int) if origin is Counter else inner
        pairs = {_from_plain(key, one): _from_plain(item, other) for one, other in value}
        return Counter(pairs) if origin is Counter else pairs
    if origin is Literal:
        if value not in inner:
            raise ValueError(f"{value!r}")
        return value
    if origin is tuple:
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else inner
        return tuple(_from_plain(item, one) for item, one in zip(kinds, value, strict=True))
    if origin in (list, set):
        make: Callable[[Any], Any] = origin
        return make(_from_plain(inner[0], one) for one in value)
    if kind is not Any and not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where {kind.__name__} was expected")
    return value


def _has_default(item: Field[Any]) -> bool:
    return item.default is not MISSING or item.default_factory is not MISSING


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)
