"""What every section of the configuration shares: strict construction that remembers what the user typed."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import inspect
import types
import typing
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import dataclass_transform

from ..errors import ConfigError
from .synonyms import SYNONYMS

T = TypeVar("T")


@dataclass_transform(field_specifiers=(dataclasses.field,))
def section(cls: type[T]) -> type[T]:
    """Makes a strict configuration dataclass.

    A bool is not an int, a string is not a number, an unknown keyword is refused with a suggestion; every
    refusal is a ConfigError. The names that the caller gave are remembered (see typed()).
    """
    pydantic_dataclass(config=ConfigDict(strict=True))(cls)  # changes the class in place
    validate = cls.__init__
    positional = [
        name
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        refuse_unknown(cls, kwargs)
        try:
            validate(self, *args, **kwargs)
        except ValidationError as error:
            raise _config_error(cls, error) from None
        object.__setattr__(self, "_typed", frozenset(positional[: len(args)]) | frozenset(kwargs))

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def typed(config: object) -> frozenset[str]:
    """The names of the fields that the caller gave; the others stand at their defaults."""
    return getattr(config, "_typed", frozenset())


def with_values(config: T, **changes: Any) -> T:
    """A copy with some fields changed; only those and the ones typed before count as typed."""
    changed = copy.copy(config)
    for name, value in changes.items():
        setattr(changed, name, value)
    object.__setattr__(changed, "_typed", typed(config) | frozenset(changes))
    return changed


def label(cls: type) -> str:
    """The name that users see for a section: `training` for TrainingConfig."""
    return str(getattr(cls, "SECTION", cls.__name__))


def field_path(cls: type, field: object) -> str:
    """The name that users see for a field: `training.batch_size`, but `method` for RunConfig's own."""
    return f"{label(cls)}.{field}" if label(cls) else str(field)


def field_names(cls: type) -> list[str]:
    """The configurable fields of a section, in order."""
    return [field.name for field in dataclasses.fields(cls)]


def refuse_unknown(cls: type, keys: typing.Iterable[str]) -> None:
    """Raises ConfigError for the first key that the section does not have, naming the likely one."""
    names = field_names(cls)
    for key in keys:
        if key in names:
            continue
        meant = SYNONYMS.get(key)
        near = [meant] if meant else _elsewhere(key) or difflib.get_close_matches(key, names, n=2, cutoff=0.6)
        hint_ja = f"もしかして: {', '.join(near)}" if near else f"使えるキー: {', '.join(names)}"
        hint_en = f"did you mean {', '.join(near)}?" if near else f"known keys: {', '.join(names)}"
        raise ConfigError(
            f"{field_path(cls, key)} というキーはありません。{hint_ja}",
            f"{field_path(cls, key)} is not a known key; {hint_en}",
        )


def _elsewhere(key: str) -> list[str]:
    """Fields of this name in other sections."""
    from .load import fields_of
    from .run import RunConfig

    return [".".join(path) for path in fields_of(RunConfig) if path[-1] == key][:2]


def require(holds: bool, name: str, value: object, ja: str, en: str) -> None:
    """Raises ConfigError `name is value; rule` where the rule does not hold."""
    if not holds:
        raise ConfigError(f"{name} が {value!r} です。{ja}", f"{name} is {value!r}; {en}")


def _config_error(cls: type, error: ValidationError) -> ConfigError:
    """The first problem that pydantic found, with name, value and rule."""
    problem = error.errors(include_url=False)[0]
    inner = problem.get("ctx", {}).get("error")
    if isinstance(inner, ConfigError):
        return inner
    name = field_path(cls, problem["loc"][0]) if problem["loc"] else label(cls)
    if problem["type"] in ("missing", "unexpected_positional_argument"):
        return ConfigError(
            f"{name}: 引数が正しくありません（{problem['msg']}）。",
            f"{name}: the arguments are off ({problem['msg']}).",
        )
    return ConfigError(
        f"{name} が {problem['input']!r} です。型または値が正しくありません（{problem['msg']}）。",
        f"{name} is {problem['input']!r} ({type(problem['input']).__name__}); {problem['msg']}.",
    )


def build(cls: type[T], values: object, path: str = "") -> T:
    """A section from plain YAML or JSON values: nested sections from mappings, tuples from lists.

    Raises:
        ConfigError: for a value that is no mapping, an unknown key, a wrong type or a value out of range.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, dict):
        name = path or label(cls)
        raise ConfigError(
            f"{name} が {values!r} です。キーと値の組で書いてください。",
            f"{name} is {values!r}; it must be a mapping of keys to values.",
        )
    refuse_unknown(cls, values)
    hints = typing.get_type_hints(cls)
    return cls(**{key: _plain(hints[key], value, field_path(cls, key)) for key, value in values.items()})


def _plain(hint: Any, value: object, path: str) -> object:
    """One YAML value in the type its field wants."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    nested = [option for option in options if dataclasses.is_dataclass(option)]
    if nested and value is not None:
        return build(typing.cast(type, nested[0]), value, path)
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        return tuple(value)
    return value
