"""Rows to train on out of judged answers: right ones as supervised rows, right and wrong ones as pairs.

An answer that did not end by itself is in neither: its row would teach the model to stop where it was cut. Questions that
stand in the file more than once count as one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..inference.sampled import Sampled
from .answers import normalized


@dataclass(frozen=True)
class Counts:
    """What was judged.

    Attributes:
        all_right, mixed, all_wrong: questions.
        right, answers: answers.
        cut: answers that did not end by themselves.
    """

    all_right: int
    mixed: int
    all_wrong: int
    right: int
    answers: int
    cut: int


def counts(rows: Sequence[Sampled], marks: Sequence[Sequence[bool]]) -> Counts:
    """Questions by how many of their answers are right."""
    kinds = Counter((all(mark), any(mark)) for mark in marks)
    return Counts(
        kinds[True, True],
        kinds[False, True],
        kinds[False, False],
        sum(map(sum, marks)),
        sum(map(len, marks)),
        sum(end != "stop" for row in rows for end in row.ends),
    )


@dataclass
class _Asked:
    """A question with its answers, as often as each was drawn."""

    row: Sampled
    right: Counter[str] = field(default_factory=Counter)
    wrong: Counter[str] = field(default_factory=Counter)


def _asked(rows: Sequence[Sampled], marks: Sequence[Sequence[bool]]) -> list[_Asked]:
    obtained: dict[tuple[str, ...], _Asked] = {}
    for row, mark in zip(rows, marks, strict=True):
        item = obtained.setdefault((row.system, row.question, row.material), _Asked(row))
        for text, end, right in zip(row.samples, row.ends, mark, strict=True):
            if end == "stop" and text.strip():
                (item.right if right else item.wrong)[text] += 1
    for item in obtained.values():  # right under one of two equal questions, wrong under the other: says nothing
        for text in item.right.keys() & item.wrong.keys():
            del item.right[text], item.wrong[text]
    return list(obtained.values())


def _distinct(drawn: Counter[str], most: int) -> list[str]:
    """The answers that differ after normalized(), the most frequent first, each as it was drawn most."""
    sums: Counter[str] = Counter()
    written: dict[str, str] = {}
    for text, times in drawn.most_common():
        sums[normalized(text)] += times
        written.setdefault(normalized(text), text)
    return [written[key] for key, _ in sums.most_common(most)]


def _beside(row: Sampled) -> dict[str, str]:
    """The columns of what was asked beside the question."""
    return {name: text for name, text in (("input", row.material), ("system", row.system)) if text}


def supervised_rows(rows: Sequence[Sampled], marks: Sequence[Sequence[bool]], most: int) -> list[dict[str, Any]]:
    """{instruction, output}, with input and system where there are such, of right answers.

    Args:
        rows: questions with answers.
        marks: for each whether its answers are right.
        most: different answers to a question.
    """
    return [
        {"instruction": item.row.question, **_beside(item.row), "output": text}
        for item in _asked(rows, marks)
        for text in _distinct(item.right, most)
    ]


def pair_rows(rows: Sequence[Sampled], marks: Sequence[Sequence[bool]], most: int) -> list[dict[str, Any]]:
    """{prompt, chosen, rejected}, with input and system where there are such: each wrong answer beside a right one, the most
    frequent first.

    Args:
        rows: questions with answers.
        marks: for each whether its answers are right.
        most: pairs of a question.
    """
    obtained = []
    for item in _asked(rows, marks):
        right = _distinct(item.right, most)
        for place, rejected in enumerate(_distinct(item.wrong, most) if right else ()):
            pair = {"chosen": right[place % len(right)], "rejected": rejected}
            obtained.append({"prompt": item.row.question, **_beside(item.row), **pair})
    return obtained
