"""What every section of the configuration shares: strict values, at construction and at assignment, and a memory of
what the user gave.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails
from typing_extensions import dataclass_transform

from ..errors import ConfigError, Problem, Reason
from .fields import field_names, field_path, field_types, label, options_of, plain_types, section_class
from .full_width import narrow_hint
from .hints import hint, value_hint
from .limits import HUGE, NO_CHOICE, OUT_OF_RANGE, item_type, requirement
from .shortened import cut, shortened

T = TypeVar("T")

# Every section by its name, for "did you mean data.max_length?".
_SECTIONS: dict[str, type] = {}

GIVEN = "_given"

# Settings that name a place on the disk: a pathlib.Path will do for them as well.
_PLACES = frozenset(
    {
        "model.name",
        "model.chat_template",
        "data.train",
        "data.eval",
        "data.replay.path",
        "lora.adapter",
        "training.output_dir",
        "training.checkpoint.resume_from_checkpoint",
    }
)


def carried(name: str) -> Any:
    """A field that dataclasses.replace() hands over, and that fields(), asdict(), repr() and == leave out.

    dataclasses.replace(config, ...) calls the class with the changes first and then with the attributes of all fields
    in their order. So a first field that no user sees hands over what was given before, and marks where the changes
    end: what stands in front of it is given now.
    """
    holder: Any = dataclasses.make_dataclass("_Holder", [(name, dataclasses.InitVar[Any], None)])
    return holder.__dataclass_fields__[name]


# What the user gave, in front of every section's fields.
RECORD = carried(GIVEN)


@dataclass_transform(field_specifiers=(dataclasses.field,))
def section(cls: type[T]) -> type[T]:
    """Makes a strict configuration dataclass.

    A bool is not an int, a string is not a number, an unknown name is refused with a suggestion, also at assignment;
    every refusal is a ConfigError. The names that the user gave are remembered (see explicitly_set()).
    """
    pydantic_dataclass(config=ConfigDict(strict=True, allow_inf_nan=False))(cls)  # changes the class in place
    validate = cls.__init__
    hints = plain_types(typing.cast(type, cls))
    parameters = [
        parameter.replace(annotation=hints[name]) for name, parameter in inspect.signature(cls).parameters.items()
    ]
    positional = [item.name for item in parameters if item.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]

    @functools.wraps(validate)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        values = named_arguments(cls, positional, args, kwargs)
        given = split_given(cls, values)
        validate_keys(cls, values)
        for name, value in values.items():
            nested = section_class(hints[name])
            if nested is not None and isinstance(value, Mapping):
                values[name] = build(nested, value)
            elif field_path(cls, name) in _PLACES:
                values[name] = _as_text(value)
        try:
            validate(self, **values)
        except ValidationError as error:
            raise ConfigError.of(_problems(cls, error, values)) from None
        _refuse_huge(cls, values)
        self.__dict__[GIVEN] = given

    def __setattr__(self: Any, name: str, value: Any) -> None:
        validate_keys(type(self), [name])
        changed = dataclasses.replace(self, **{name: value})  # refuses what the constructor refuses
        self.__dict__.update({name: changed.__dict__[name], GIVEN: changed.__dict__[GIVEN]})

    cls.__init__ = __init__  # type: ignore[method-assign]
    cls.__setattr__ = __setattr__  # type: ignore[method-assign]
    cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    cls.__dataclass_fields__ = {GIVEN: RECORD, **cls.__dataclass_fields__}  # type: ignore[attr-defined]
    _SECTIONS[label(cls)] = cls
    return cls


def named_arguments(
    cls: type, positional: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """A constructor's arguments by name.

    Raises:
        ConfigError: more positional arguments than the class has, or one that is given twice.
    """
    name = label(cls) or cls.__name__
    if len(args) > len(positional):
        raise ConfigError(
            f"{name}: 引数が正しくありません（位置引数は {len(positional)} 個までですが、{len(args)} 個あります）。",
            f"{name}: invalid arguments (at most {len(positional)} can be positional; there are {len(args)}).",
        )
    named = dict(zip(positional, args, strict=False))
    for twice in named.keys() & kwargs.keys():
        raise ConfigError(
            f"{name}: 引数が正しくありません（{twice} が 2 回指定されています）。",
            f"{name}: invalid arguments ({twice} is given twice).",
        )
    return named | dict(kwargs)


def split_given(cls: type, values: dict[str, Any]) -> frozenset[str]:
    """What counts as given in a constructor's arguments; takes the record that replace() carries out of them."""
    names = list(values)
    if GIVEN not in values:
        return frozenset(names)
    before: frozenset[str] = values.pop(GIVEN)
    return before.union(names[: names.index(GIVEN)]) & frozenset(field_names(cls))


def explicitly_set(config: object) -> frozenset[str]:
    """The names of the fields that the user gave, in the constructor, by replace() or by assignment.

    The others have their defaults: `warmup_steps=100` that the user wrote is not the default of 100.
    """
    given: frozenset[str] = getattr(config, GIVEN, frozenset())
    return given


def with_values(config: T, **changes: Any) -> T:
    """A copy with some fields changed: dataclasses.replace() of a section."""
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def known_names(cls: type) -> list[str]:
    """What a section takes by name; a class that takes more than its fields lists it in ALSO."""
    return [*getattr(cls, "ALSO", ()), *field_names(cls)]


def validate_keys(cls: type, keys: Iterable[object]) -> None:
    """Raises ConfigError for the keys that the section does not have, naming the likely ones."""
    problems = unknown_keys(cls, keys)
    if problems:
        raise ConfigError.of(problems)


def unknown_keys(cls: type, keys: Iterable[object]) -> list[Problem]:
    """The keys that a section does not have, with what may have been meant."""
    names = known_names(cls)
    listed = Reason(f"使えるキー: {', '.join(names)}", f"known keys: {', '.join(names)}")
    problems = []
    for key in map(str, keys):
        if key not in names:
            meant, path = hint(key, names, settings_by_name(), listed), field_path(cls, key)
            shown = cut(path)
            problems.append(
                Problem(f"{shown} というキーはありません。{meant.ja}", f"{shown} is not a known key; {meant.en}", path)
            )
    return problems


def settings_by_name() -> dict[str, list[str]]:
    """The dotted names of all settings, by their last part."""
    obtained: dict[str, list[str]] = {}
    for cls in _SECTIONS.values():
        for name in field_names(cls):
            obtained.setdefault(name, []).append(field_path(cls, name))
    return obtained


def require(holds: bool, name: str, value: object, ja: str, en: str) -> None:
    """Raises ConfigError `name is value; rule` where a rule between fields does not hold."""
    if not holds:
        raise ConfigError(f"{name} が {shortened(value)} です。{ja}", f"{name} is {shortened(value)}; {en}")


def _as_text(value: Any) -> Any:
    """A place on the disk as the text that names it, also in a list or an entry of data."""
    if isinstance(value, list):
        return [_as_text(item) for item in value]
    if isinstance(value, dict):
        return {key: _as_text(item) for key, item in value.items()}
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _refuse_huge(cls: type, values: Mapping[str, Any]) -> None:
    huge = {name: value for name, value in values.items() if isinstance(value, int) and abs(value) >= HUGE}
    if huge:
        raise ConfigError.of(
            [
                Problem(
                    f"{field_path(cls, name)} が {shortened(value)} です。2^53 より小さい数にしてください。",
                    f"{field_path(cls, name)} is {shortened(value)}; it must be below 2^53.",
                    field_path(cls, name),
                )
                for name, value in huge.items()
            ]
        )


def _problems(cls: type, error: ValidationError, values: Mapping[str, Any]) -> list[Problem]:
    """What pydantic reports, a problem for each field, with name, value and rule, in our own words."""
    problems = error.errors(include_url=False)
    for item in problems:
        inner = item.get("ctx", {}).get("error")
        if isinstance(inner, ConfigError):
            return list(inner.problems)
    fields = dict.fromkeys(str(item["loc"][0]) for item in problems)
    return [_problem(cls, field, [item for item in problems if item["loc"][0] == field], values) for field in fields]


def _problem(cls: type, field: str, of_field: Sequence[ErrorDetails], values: Mapping[str, Any]) -> Problem:
    # Of `text | list | number` each part complains: a number out of range says more than "not a text".
    problem = next((item for item in of_field if item["type"] in OUT_OF_RANGE), of_field[0])
    kind, rest = problem["type"], problem["loc"][1:]
    key, value, each = field_path(cls, field), values[field], False
    expected, name = field_types(cls)[field], key
    if isinstance(value, Mapping) and rest and rest[0] in value:
        name, value = f"{name}[{cut(rest[0])}]", problem["input"]
        expected = item_type(expected, key="[key]" in rest)
    elif isinstance(value, list | tuple):
        each = any(isinstance(part, int) for part in rest)
    ja, en = requirement(expected, kind, each=each)
    reported = "" if kind in OUT_OF_RANGE or kind == NO_CHOICE else f" ({type(value).__name__})"
    meant, narrow = value_hint(key, value), narrow_hint(value)
    return Problem(
        f"{name} が {shortened(value)} です。{ja}{meant.ja}{narrow.ja}",
        f"{name} is {shortened(value)}{reported}; {en}{meant.en}{narrow.en}",
        key,
    )


def build(cls: type[T], values: object, path: str = "") -> T:
    """A section from plain YAML or JSON values: nested sections from mappings, tuples from lists.

    Raises:
        ConfigError: for values that are no mapping, unknown keys, wrong types and values out of range: all of them at
            once. Rules between settings are looked at where every setting by itself is right.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        name = path or label(cls)
        ja, en = "キーと値の組で書いてください。", "it must be a mapping of keys to values."
        raise ConfigError.of(
            [Problem(f"{name} が {shortened(values)} です。{ja}", f"{name} is {shortened(values)}; {en}", name)]
        )
    problems = unknown_keys(cls, values)
    hints, converted = plain_types(typing.cast(type, cls)), {}
    for key, value in values.items():
        try:
            if key in hints:
                converted[key] = _from_plain(hints[key], value, field_path(cls, key))
        except ConfigError as error:
            problems += error.problems
    try:
        built = cls(**converted)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError.of([item for item in problems if item.key] or problems)
    return built


def _from_plain(hint: Any, value: object, path: str) -> object:
    """One YAML value in the type that its field takes."""
    nested = section_class(hint)
    if nested is not None and value is not None:
        return build(nested, value, path)
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options_of(hint)):
        return tuple(value)
    return value
