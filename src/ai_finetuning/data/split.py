"""A file's rows in two: training and evaluation, by share, with what belongs together on one side, or by time."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from ..errors import DataError
from ..messages import excerpt
from .doctor.duplicates import Pair, groups, near_pairs
from .doctor.leakage import question_key
from .doctor.rules import normalised
from .rows import Row

_DATE = re.compile(
    r"(\d{4})\s*[-/.年]\s*(\d{1,2})\s*(?:[-/.月]\s*(\d{1,2})\s*日?)?月?(?:[T\s]+(\d{1,2})[:時](\d{1,2})(?:[:分](\d{1,2}))?[分秒]?)?"
)


@dataclass(frozen=True)
class Division:
    """The indices of the rows on both sides, in the order of the file.

    Attributes:
        kept_back: rows that their time would have made evaluation rows, but whose question or near duplicate is older.
    """

    train: list[int]
    evaluated: list[int]
    kept_back: int = 0


def together(pairs: Sequence[Pair], values: Sequence[Hashable | None] = ()) -> list[int]:
    """Of each row the first one that it belongs with: equal questions, equal rows, near duplicates, equal values of a
    column.
    """
    links = near_pairs(pairs)
    first: dict[Hashable, int] = {}
    for index, pair in enumerate(pairs):
        question = question_key(pair)  # answers are compared where there is no question
        keys: list[Hashable] = [("question", question) if question else ("answer", normalised(pair.answer))]
        if values and values[index] not in (None, ""):
            keys.append(("value", values[index]))
        links += [(first.setdefault(key, index), index) for key in keys]
    return groups(len(pairs), links)


def by_share(root: Sequence[int], share: float, seed: int, name: str) -> Division:
    """A share of the rows for evaluation, drawn in whole groups.

    Args:
        root: of each row the first of its group.
        share: of the rows.
        seed: of the order in which groups are drawn.
        name: of the file, for the message.

    Raises:
        DataError: one side would be empty.
    """
    members: dict[int, list[int]] = defaultdict(list)
    for index, first in enumerate(root):
        members[first].append(index)
    wanted = _wanted(len(root), share, name)
    order = list(members)
    random.Random(seed).shuffle(order)
    chosen: list[int] = []
    for first in order:
        if len(chosen) + len(members[first]) <= wanted:
            chosen += members[first]
    if not chosen:  # every group is larger than the share: the smallest comes nearest
        chosen = members[min(order, key=lambda first: len(members[first]))]
    return _divided(len(root), set(chosen), name)


def by_time(root: Sequence[int], times: Sequence[float], share: float, name: str) -> Division:
    """The latest share of the rows for evaluation. Rows of one moment stay together, and a row whose group has older ones
    stays with them: evaluation is of what nobody had seen before.

    Args:
        root: of each row the first of its group.
        times: of each row.
        share: of the rows.
        name: of the file, for the message.

    Raises:
        DataError: one side would be empty.
    """
    wanted = _wanted(len(root), share, name)
    limit = sorted(times)[len(times) - wanted]
    oldest: dict[int, float] = {}
    for first, time in zip(root, times, strict=True):
        oldest[first] = min(time, oldest.get(first, time))
    late = [index for index, time in enumerate(times) if time >= limit]
    chosen = {index for index in late if oldest[root[index]] >= limit}
    return _divided(len(root), chosen, name, len(late) - len(chosen))


def _wanted(rows: int, share: float, name: str) -> int:
    wanted = round(share * rows)
    if not 0 < wanted < rows:
        raise DataError(
            f"{name} は {rows} 行で、割合 {share:g} では評価か学習のどちらかが 0 行になります。割合を変えてください。",
            f"{name} has {rows} rows, of which a share of {share:g} leaves none for evaluation or none for training; change "
            "the share.",
        )
    return wanted


def _divided(rows: int, chosen: set[int], name: str, kept_back: int = 0) -> Division:
    if not 0 < len(chosen) < rows:
        raise DataError(
            f"{name} の {rows} 行は互いに関わりがあり（同じ質問、ほぼ同じ行、同じ時刻）、学習と評価に分けられません。",
            f"the {rows} rows of {name} belong together (equal questions, near duplicates, one time) and cannot be divided "
            "into training and evaluation.",
        )
    rest = [index for index in range(rows) if index not in chosen]
    return Division(rest, sorted(chosen), kept_back)


def validate_column(rows: Sequence[Row], column: str) -> None:
    """Refuses a column that no row has.

    Raises:
        DataError: with the columns that there are.
    """
    if not any(column in row.values for row in rows):
        names = ", ".join(excerpt(str(name)) for name in rows[0].values) if rows else ""
        raise DataError(
            f"列 {excerpt(column)} がありません。列: {names}",
            f"there is no column {excerpt(column)}; columns: {names}.",
        )


def times_of(rows: Sequence[Row], column: str) -> list[float]:
    """The time of each row, in seconds or in what the column counts: numbers, or dates such as 2024-04-01, 2024/4/1 9:00 and
    2024年4月1日. A time without a zone is taken as UTC.

    Raises:
        DataError: no such column, or a value that is none of these.
    """
    validate_column(rows, column)
    return [_time_of(row.values.get(column), row.source, column) for row in rows]


def _time_of(value: Any, source: str, column: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, datetime):
        return _seconds(value)
    text = str(value if value is not None else "").strip()
    if re.fullmatch(r"-?\d+(?:\.\d+)?", text):
        return float(text)
    for read in (_iso, _written):
        obtained = read(text)
        if obtained is not None:
            return _seconds(obtained)
    raise DataError(
        f"{source}: 列 {excerpt(column)} の {excerpt(text)!r} は日時として読めません。2024-04-01 や 2024年4月1日 の形か、数にしてください。",
        f"{source}: {excerpt(text)!r} in column {excerpt(column)} is no time; write it as 2024-04-01 or 2024年4月1日, or as "
        "a number.",
    )


def _iso(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.removesuffix("Z") + ("+00:00" if text.endswith("Z") else ""))
    except ValueError:
        return None


def _written(text: str) -> datetime | None:
    match = _DATE.fullmatch(text)
    if match is None:
        return None
    year, month, day, hour, minute, second = (int(part) if part else 0 for part in match.groups())
    try:
        return datetime(year, month, day or 1, hour, minute, second)
    except ValueError:
        return None


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo is not None else time.replace(tzinfo=timezone.utc)).timestamp()
