"""A row as the formats see it, a format, and what becomes of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..messages import excerpt
from .bad_rows import BadRow
from .columns import by_plain_name
from .conversations import text_of
from .messages import Comparison, Judged, Message, Sample

# What stands in a cell where a spreadsheet or a program had no value (compared whole): never a person's text.
NO_VALUES = frozenset(
    ("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!", "#GETTING_DATA")
    + ("nan", "NaN", "NAN", "<NA>", "NaT", "NULL", "\\N")
)


@dataclass(frozen=True)
class Shape:
    """A row as the formats see it.

    Attributes:
        values: the row.
        roles: role -> column, by headings or as the user said.
        by_hand: whether the user named roles; then no other format is looked for.
        judged: the columns of answers and verdicts that the user named: chosen, rejected, label, preference.
    """

    values: Mapping[str, Any]
    roles: Mapping[str, str]
    by_hand: bool = False
    judged: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        return by_plain_name(tuple(self.values))

    def value(self, name: str) -> Any:
        """What stands under a heading, however it is written; None where there is no such column."""
        return next((self.values[key] for key in self.names.get(name, ()) if key in self.values), None)

    def filled(self, *names: str) -> list[str]:
        """Those of the headings under which something stands."""
        own = self.names
        return [key for name in names for key in own.get(name, ()) if not blank(self.values.get(key))]

    def has(self, *roles: str) -> bool:
        """Whether the row has columns of all roles, and something stands in one of them."""
        if not all(role in self.roles for role in roles):
            return False
        return any(self.values.get(self.roles[role]) is not None for role in roles)


# What a format makes of a row: messages, a text, two answers or a marked one; None where two answers are equally good.
Content = list[Message] | str | Comparison | Judged | None
Making = Callable[[Shape], tuple[Content, set[str], set[str]]]


@dataclass(frozen=True)
class Built:
    """What a row became.

    Attributes:
        sample: what is trained; None for a row that says of itself that it is not to be learnt, and for a tie.
        used: columns that are in the sample, or steered it.
        keys: keys of its messages that are not used.
        tied: whether neither of two answers is the better one.
    """

    sample: Sample | None
    used: frozenset[str]
    keys: frozenset[str] = frozenset()
    tied: bool = False


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        key: its name in reports.
        ja, en: what it is and what becomes of it.
        example: a row, as JSON.
        fits: whether a row is of this format.
        names: headings one of which such a row has; empty where it goes by roles and values.
        build: makes the messages or the text of a row, with the columns that it used; None for a format that is refused.
    """

    key: str
    ja: str
    en: str
    example: str
    fits: Callable[[Shape], bool]
    build: Making | None = None
    names: tuple[str, ...] = ()

    def refusal(self) -> BadRow:
        """Why rows of this format are not trained on."""
        return BadRow(self.ja, self.en)


def blank(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def cell_text(value: Any, column: str, *, required: bool = True) -> str:
    """A cell's text; numbers are text, as in CSV.

    Raises:
        BadRow: an empty cell that is needed, a value of another type, or what stands for a missing value.
    """
    column = excerpt(column)
    if blank(value):
        if required:
            raise BadRow(f"{column} が空です", f"{column} is empty")
        return ""
    if isinstance(value, list | tuple) and all(isinstance(part, Mapping) for part in value):
        value, extra = text_of(value, column)
        if extra:
            raise BadRow(f"{column} に思考（reasoning）の部分があります", f"{column} has a part of type reasoning")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if type(value).__name__ in ("date", "datetime", "time", "Decimal", "Timestamp"):
        value = str(value)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadRow(
            f"{column} が {kind} です（文字列が必要です）",
            f"{column} is a {kind}; it must be a string",
            value,
        )
    if value.strip() in NO_VALUES:
        raise BadRow(
            f"{column} が {value.strip()} です（値がないときやエラーのときの表示で、文ではありません）",
            f"{column} is {value.strip()}, which marks an error or a missing value and is no text",
        )
    return value
