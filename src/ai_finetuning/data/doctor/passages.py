"""The texts in a row, each with its role and where it stands, so that a repaired one can be put back in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ...config.preference import Objective
from ...errors import DataError
from ..bad_rows import BadRow
from ..columns import plain, role_of
from ..conversations import ROLES, SPEAKER_KEYS, TEXT_KEYS
from ..formats import find_format
from ..judgements import CHOSEN, REJECTED, better, is_marked_bad, sides_of
from ..row_format import Shape
from ..rows import Row

# Where a text stands in a row: keys and indices; PARSED stands for the JSON inside a string.
Place = tuple[str | int, ...]
PARSED = "$json"
# Formats of answers that people compare or judge, with what is learnt from them.
JUDGED: dict[str, Objective] = {"preference": "preference", "feedback": "kto"}
_ROLES = {"user": "question", "assistant": "answer", "system": "system", "tool": "tool"}
_BY_COLUMN = {"system": "system", "instruction": "question", "input": "material", "output": "answer"}


@dataclass(frozen=True, slots=True)
class Passage:
    """One text of a row.

    Attributes:
        text: as it stands there.
        role: `system`, `question`, `material`, `answer`, `rejected`, `tool`, or `text` where it is plain text or nothing is
            known of it.
        place: where it stands in the row.
        question, material: of an answer, what it answers.
        same: of a rejected answer, whether it is the chosen one as well.
    """

    text: str
    role: str
    place: Place
    question: str = ""
    material: str = ""
    same: bool = False


@dataclass
class Sample:
    """A row as the doctor sees it.

    Attributes:
        number: of the row among those that could be read, from 1.
        source: file and line.
        values: the row as it is now; repairs replace it.
        passages: its texts.
        learnt: whether the row is of a form that is trained on, of pairs of a chosen and a rejected answer, or of answers
            marked as good or bad.
        pair: whether it is such a pair.
    """

    number: int
    source: str
    values: Mapping[str, Any]
    passages: list[Passage] = field(default_factory=list)
    learnt: bool = True
    pair: bool = False

    def said(self, role: str) -> str:
        """Everything of one role, a line each."""
        return "\n".join(item.text for item in self.passages if item.role == role)


def sample_of(row: Row, number: int, columns: Mapping[str, str] | None = None) -> Sample:
    """A row with its texts."""
    try:
        obtained, shape = find_format(row.values, columns)
        key = obtained.key if obtained is not None else ""
    except DataError:
        obtained, shape, key = None, Shape(row.values, {}), ""
    learnt = key in JUDGED or (bool(key) and obtained is not None and obtained.build is not None)
    if not learnt:
        loose = (
            Passage(value, "text", (name,)) for name, value in row.values.items() if isinstance(value, str) and value
        )
        return Sample(number, row.source, row.values, list(loose), False)
    passages = list(_passages(shape, key))
    if key == "feedback" and is_marked_bad(shape):
        last = max((place for place, item in enumerate(passages) if item.role == "answer"), default=None)
        passages = [replace(item, role="rejected") if place == last else item for place, item in enumerate(passages)]
    if key == "preference":
        passages = _with_equal(passages)
    return Sample(number, row.source, row.values, passages, pair=key == "preference")


def _with_equal(passages: list[Passage]) -> list[Passage]:
    """The passages of a pair, with the last rejected answer marked where both sides say the same."""
    chosen, rejected = (
        [item.text.strip() for item in passages if item.role == role] for role in ("answer", "rejected")
    )
    if not rejected or chosen[-len(rejected) :] != rejected:
        return passages
    last = max(place for place, item in enumerate(passages) if item.role == "rejected")
    return [replace(item, same=True) if place == last else item for place, item in enumerate(passages)]


def _answer_columns(shape: Shape) -> list[tuple[str, str]]:
    """The columns of the answers of a pair; the first is taken for the better one where no verdict says so."""
    sides = sides_of(shape)
    if sides is None:
        named = [(name, "output") for name in shape.filled(*CHOSEN)]
        return named + [(name, "rejected") for name in shape.filled(*REJECTED)]
    try:
        order = better(shape, sides) or 1
    except BadRow:
        order = 1
    return list(zip((sides.first, sides.second)[::order], ("output", "rejected"), strict=True))


def _columns(shape: Shape, key: str) -> list[tuple[str, str]]:
    """(column, what stands in it) of a row of a format, in the order of the conversation."""
    roles = shape.roles
    named = {role: role for role in ("system", "history", "messages", "instruction", "input", "output")}
    if key == "text":
        named = {"text": "text"}
    elif key == "text and answer":
        named = {"system": "system", "text": "instruction", "output": "output"}
    elif key == "input and answer" or (key in JUDGED and "instruction" not in roles):
        named |= {"input": "instruction"}  # without an instruction the input is the question
    if key == "preference":
        del named["output"]
    columns = [(roles[role], name) for role, name in named.items() if role in roles]
    if key == "preference":
        columns += _answer_columns(shape)
    return columns


def _passages(shape: Shape, key: str) -> Iterator[Passage]:
    asked, material = "", ""
    for column, name in _columns(shape, key):
        role = _BY_COLUMN.get(name, name)
        for item in _of_value(shape.values.get(column), role, (column,)):
            if role == "rejected" and item.role != "rejected":
                # The conversation again, as it stands before the chosen answer: it counts once, and is repaired twice.
                yield replace(item, role="text")
                continue
            if item.role == "question":
                asked, material = item.text, ""
            elif item.role == "material":
                material = item.text
            elif item.role in ("answer", "rejected"):
                item = Passage(item.text, item.role, item.place, asked, material)
            yield item


def _of_value(value: Any, role: str, place: Place) -> Iterator[Passage]:
    if isinstance(value, str):
        listed = _parsed(value) if role not in ("text", "material") else None
        if listed is not None:
            yield from _of_value(listed, role, (*place, PARSED))
        elif value:
            yield Passage(value, {"history": "text", "messages": "text"}.get(role, role), place)
    elif isinstance(value, Mapping) and any(plain(key) in SPEAKER_KEYS for key in value):
        yield from _of_item(value, role, place)
    elif isinstance(value, Mapping) and isinstance(value.get("messages"), list | tuple):
        yield from _of_value(value["messages"], role, (*place, "messages"))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _of_item(item, role, (*place, index))


def _parsed(text: str) -> list[Any] | None:
    """The messages that a cell holds as JSON; None where it is a text."""
    if not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value) else None


def _of_item(item: Any, role: str, place: Place) -> Iterator[Passage]:
    """A message, a pair of turns, or a part of a content."""
    if isinstance(item, str):
        # [question, answer] of a history
        turn = ("question", "answer")[int(place[-1]) % 2] if role == "history" else role
        yield Passage(item, turn, place)
        return
    if isinstance(item, list | tuple):
        yield from _of_value(item, role, place)
        return
    if not isinstance(item, Mapping):
        return
    keys = {plain(key): key for key in item}
    speaker = next((item[keys[key]] for key in SPEAKER_KEYS if key in keys), None)
    if speaker is not None:
        own = _ROLES.get(ROLES.get(plain(speaker), ""), "text")
        own = "rejected" if own == "answer" and role == "rejected" else own
        name = next((keys[key] for key in TEXT_KEYS if key in keys), None)
        if name is not None:
            yield from _content(item[name], own, (*place, name))
    elif item.get("type", "text") in ("text", "input_text", "output_text") and isinstance(item.get("text"), str):
        yield Passage(item["text"], role, (*place, "text"))
    else:
        for key, value in item.items():
            known = role_of(key)
            turn = ROLES.get(plain(key)) or {"instruction": "user", "input": "user", "output": "assistant"}.get(
                known[0] if known else "", ""
            )
            if isinstance(value, str) and value:
                yield Passage(value, _ROLES.get(turn, "text"), (*place, str(key)))


def _content(value: Any, role: str, place: Place) -> Iterator[Passage]:
    if isinstance(value, str) and value:
        yield Passage(value, role, place)
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _of_item(part, role, (*place, index))


def replaced(values: Any, place: Sequence[str | int], text: str) -> Any:
    """A copy of a row (or a part of one) in which another text stands at a place.

    Raises:
        KeyError, IndexError, TypeError, ValueError: there is no such place.
    """
    if not place:
        if not isinstance(values, str):
            raise TypeError("no text stands there")
        return text
    first, rest = place[0], place[1:]
    if first == PARSED:
        return json.dumps(replaced(json.loads(values), rest, text), ensure_ascii=False)
    if isinstance(values, Mapping):
        return {**values, first: replaced(values[str(first)], rest, text)}
    copy = list(values)
    copy[int(first)] = replaced(copy[int(first)], rest, text)
    return copy


def text_at(values: Any, place: Sequence[str | int]) -> str:
    """The text that stands at a place of a row.

    Raises:
        KeyError, IndexError, TypeError, ValueError: there is none.
    """
    for step in place:
        if step == PARSED:
            values = json.loads(values)
        else:
            values = values[str(step)] if isinstance(values, Mapping) else values[int(step)]
    if not isinstance(values, str):
        raise TypeError("no text stands there")
    return values
