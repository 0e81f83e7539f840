"""The values that a setting can have, read off its type: one annotation serves checks, messages, schema, help and page.

A range is a pydantic `Field` inside `Annotated`; `Rule` is for what a range cannot say.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

# Text in both languages: (Japanese, English).
Texts = tuple[str, str]


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words; for a pattern or a length."""

    ja: str
    en: str


AtLeastOne = Annotated[int, Field(ge=1)]
# More than any cluster has; each of them is planned for.
Processes = Annotated[int, Field(ge=1, le=65_536)]
NotNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NotNegativeFloat = Annotated[float, Field(ge=0)]
RatioFromOne = Annotated[float, Field(ge=1)]
# Between 0 and 1, and which of the ends belong to it.
Fraction = Annotated[float, Field(gt=0, lt=1)]
FractionOrZero = Annotated[float, Field(ge=0, lt=1)]
FractionOrOne = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]

_WORDS: dict[Any, Texts] = {
    bool: ("true か false", "true or false"),
    int: ("整数", "an integer"),
    float: ("数値", "a number"),
    str: ("文字列", "text"),
    type(None): ("null (None)", "null (None)"),
}
_ONES: dict[Any, Texts] = {str: ("文字列", "texts"), int: ("整数", "integers"), float: ("数値", "numbers")}
_ENTRIES = ("文字列やキーと値の組", "texts and mappings")
# Whole numbers from here on are not all floats: nobody means them, and no time or size could be computed of them.
HUGE = 2**53
# (bound, Japanese where it stands alone, Japanese where another bound follows, English)
_LOWER = (("ge", "{} 以上", "{} 以上 ", "at least {}"), ("gt", "{} より大きい値", "{} より大きく ", "above {}"))
_UPPER = (("le", "{} 以下", "at most {}"), ("lt", "{} 未満", "below {}"))


def is_union(hint: Any) -> bool:
    """Whether a type hint is `A | B`."""
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _parts(hint: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(type, its constraints) of a type hint and of everything inside it."""
    constraints: list[Any] = []
    if typing.get_origin(hint) is Annotated:
        hint, *annotations = typing.get_args(hint)
        for item in annotations:
            constraints += getattr(item, "metadata", [item])  # a pydantic Field holds its constraints in a list
    yield hint, constraints
    if typing.get_origin(hint) is not Literal:
        for argument in typing.get_args(hint):
            yield from _parts(argument)


def _range(constraints: Sequence[Any]) -> dict[str, float]:
    bounds: dict[str, float] = {}
    for item in constraints:
        for name in ("ge", "gt", "le", "lt"):
            if getattr(item, name, None) is not None:
                bounds[name] = getattr(item, name)
    return bounds


def _number(value: float) -> str:
    """2^32 for 4294967296."""
    whole = int(value)
    return f"2^{whole.bit_length() - 1}" if whole >= 2**16 and whole & (whole - 1) == 0 else str(value)


def _range_texts(bounds: dict[str, float]) -> Texts:
    upper = next(((name, ja, en) for name, ja, en in _UPPER if name in bounds), None)
    ja, en = "", []
    for name, alone, followed, text in _LOWER:
        if name in bounds:
            ja += (alone if upper is None else followed).format(_number(bounds[name]))
            en.append(text.format(_number(bounds[name])))
    if upper is not None:
        ja += upper[1].format(_number(bounds[upper[0]]))
        en.append(upper[2].format(_number(bounds[upper[0]])))
    return ja, " and ".join(en)


def _rule(hint: Any) -> Rule | None:
    """The rule in words of a type, but not of what is inside it."""
    return next((item for item in next(_parts(hint))[1] if isinstance(item, Rule)), None)


def item_type(hint: Any, *, key: bool) -> Any:
    """The type of a mapping's keys or values; another type as it is."""
    kind = next(_parts(hint))[0]
    for option in typing.get_args(kind) if is_union(kind) else (kind,):
        inner = next(_parts(option))[0]
        if typing.get_origin(inner) is dict:
            return typing.get_args(inner)[0 if key else 1]
    return hint


def _make_it(ja: str) -> str:
    return f"{ja}{' ' if ja[-1].isascii() else ''}にしてください。"


def choices(hint: Any) -> list[str]:
    """The texts or numbers that a setting is one of; empty where it is no such setting."""
    return [
        str(value) for kind, _ in _parts(hint) if typing.get_origin(kind) is Literal for value in typing.get_args(kind)
    ]


def range_texts(hint: Any) -> Texts | None:
    """The range of the numbers in a setting (`1 以上`, `at least 1`), or None."""
    obtained = next((bounds for _, constraints in _parts(hint) if (bounds := _range(constraints))), None)
    return _range_texts(obtained) if obtained is not None else None


def allowed(hint: Any) -> Texts | None:
    """What help and page say about a setting's values: its choices or its range; None where its type says all."""
    options = ", ".join(choices(hint))
    return (options, options) if options else range_texts(hint)


def _inside(arguments: Sequence[Any]) -> Any:
    kind = next(_parts(arguments[0]))[0] if arguments else str
    return kind if kind in _ONES else str


def kind_texts(hint: Any) -> Texts:
    """The type of a setting in words: `整数または null (None)`, `an integer or null (None)`."""
    kind = next(_parts(hint))[0]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if is_union(kind):
        options = [kind_texts(option) for option in arguments]
        ja, en = [ja for ja, _ in options], [en for _, en in options]
        return f"{'、'.join(ja[:-1])}または {ja[-1]}", f"{', '.join(en[:-1])} or {en[-1]}"
    if origin is Literal:
        options_text = ", ".join(map(str, arguments))
        return (options_text + " のどれか", "one of " + options_text) if len(arguments) > 1 else (options_text,) * 2
    if origin is dict:
        return "キーと値の組", "a mapping of keys to values"
    if origin is tuple and Ellipsis not in arguments:
        item = _ONES[_inside(arguments)]
        return f"{item[0]} {len(arguments)} つの組", f"{len(arguments)} {item[1]}"
    if origin in (list, tuple):
        item = _ENTRIES if arguments and is_union(arguments[0]) else _ONES[_inside(arguments)]
        return f"{item[0]}のリスト", f"a list of {item[1]}"
    if dataclasses.is_dataclass(kind):
        return "キーと値の組", "a mapping of keys to values"
    return _WORDS[kind]


# How pydantic names what is wrong; what is not in these lists is a wrong type.
_NOT_FINITE = "finite_number"
OUT_OF_RANGE = ("greater_than", "greater_than_equal", "less_than", "less_than_equal", _NOT_FINITE)
_WORDED = ("string_pattern_mismatch", "too_short")
NO_CHOICE = "literal_error"
_NOT_TEXT = "string_unicode"


def requirement(hint: Any, problem: str, *, each: bool = False) -> Texts:
    """The sentence of a refusal: what the value has to be, in both languages.

    Args:
        hint: the setting's type with its constraints.
        problem: pydantic's name of what is wrong.
        each: the value is a list of which one item is wrong.
    """
    subject_ja, subject_en = ("それぞれ ", "each") if each else ("", "it")
    rule, bounds, options = _rule(hint), range_texts(hint), choices(hint)
    if problem == _NOT_TEXT:
        return (
            "UTF-8 ではない文字が入っています。ほかの名前にしてください。",
            "it holds what is not UTF-8; give it another name.",
        )
    if problem in _WORDED and rule is not None:
        return rule.ja, rule.en
    if problem in OUT_OF_RANGE:
        ja, en = bounds or ("", "")
        if problem == _NOT_FINITE:
            ja, en = f"{ja}{'の' if ja else ''}有限の数", " and ".join(filter(None, ("finite", en)))
        return subject_ja + _make_it(ja), f"{subject_en} must be {en}."
    if problem == NO_CHOICE and options and rule is None:
        text = ", ".join(options)
        if len(options) == 1:
            return f"使えるのは {text} だけです。", f"only {text} is supported."
        return f"使えるのは {text} です。", f"{subject_en} must be one of {text}."
    if rule is not None:
        return rule.ja, rule.en
    ja, en = kind_texts(hint)
    return _make_it(ja), f"it must be {en}."
