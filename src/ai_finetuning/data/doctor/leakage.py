"""What training and evaluation data share, so that an evaluation measures memory: equal questions, near duplicates, and
questions that a training row holds nearly whole.

The last goes by the share of a question's 8-grams of characters that one row has. Single runs of 13 characters, as English
checks take them, are one short phrase in Japanese.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..messages import Comparison, PlainText, Sample, messages_of
from .duplicates import Pair, grams_of, near_pairs, shared
from .rules import normalised

COVERAGE_GRAM, COVERAGE = 8, 0.9
# A question of fewer grams is a phrase that many texts hold; those are found where they are equal.
LEAST_GRAMS = 8
# Above so many rows or characters near duplicates and coverage look at a sample of both sides.
MOST_ROWS, MOST_CHARACTERS = 100_000, 20_000_000


@dataclass
class Leakage:
    """Which evaluation rows the training data holds.

    Attributes:
        question, near, coverage: (training row, evaluation row) of equal questions, near duplicates and covered questions;
            one of each evaluation row.
        evaluated: evaluation rows.
        looked_at: (training, evaluation) rows that near duplicates and coverage were looked for in.
        rows: (training, evaluation) rows in all.
    """

    evaluated: int = 0
    question: list[tuple[int, int]] = field(default_factory=list)
    near: list[tuple[int, int]] = field(default_factory=list)
    coverage: list[tuple[int, int]] = field(default_factory=list)
    looked_at: tuple[int, int] = (0, 0)
    rows: tuple[int, int] = (0, 0)

    @property
    def sampled(self) -> bool:
        """Whether only a part of the rows was compared for near duplicates and coverage."""
        return self.looked_at != self.rows


def pair_of(sample: Sample) -> Pair:
    """A conversation as the whole of what its user says and the whole of what is answered; a plain text as an answer. Of two
    answers the better one counts.
    """
    if isinstance(sample, PlainText):
        return Pair("", "", sample.text)
    messages = sample.sides[0].messages if isinstance(sample, Comparison) else messages_of(sample)
    said = {role: [item for item in messages if item.role == role] for role in ("user", "assistant")}
    return Pair(
        "\n".join(item.content for item in said["user"]),
        "\n".join(item.input for item in said["user"] if item.input),
        "\n".join(item.content for item in said["assistant"]),
    )


def question_key(pair: Pair) -> str:
    """A question with its material as it is compared; empty where there is none."""
    question = normalised(pair.question)
    return f"{question}\n{normalised(pair.material)}" if question else ""


def find_leakage(train: Sequence[Pair], evaluated: Sequence[Pair]) -> Leakage:
    """What the training rows hold of the evaluation rows; a pure function of the two."""
    found = Leakage(len(evaluated), rows=(len(train), len(evaluated)))
    first: dict[str, int] = {}
    for index, pair in enumerate(train):
        first.setdefault(question_key(pair), index)
    for index, pair in enumerate(evaluated):
        key = question_key(pair)
        if key and key in first:
            found.question.append((first[key], index))
    ours, theirs = _sampled(train, evaluated)
    found.looked_at = (len(ours), len(theirs))
    side = np.arange(len(ours) + len(theirs)) >= len(ours)
    together = [train[index] for index in ours] + [evaluated[index] for index in theirs]
    near = [(int(ours[a]), int(theirs[b - len(ours)])) for a, b in near_pairs(together, side)]
    found.near = _one_each(near)
    covered = _covered([train[index] for index in ours], [evaluated[index] for index in theirs])
    found.coverage = _one_each([(int(ours[a]), int(theirs[b])) for a, b in covered])
    return found


def _one_each(pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The first pair of each evaluation row."""
    chosen: dict[int, int] = {}
    for first, second in pairs:
        chosen[second] = min(first, chosen.get(second, first))
    return [(first, second) for second, first in sorted(chosen.items())]


def _sampled(train: Sequence[Pair], evaluated: Sequence[Pair]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the rows to compare: all, or evenly spread ones where they are too many."""

    def thinned(pairs: Sequence[Pair], rows: int, characters: int) -> NDArray[np.int64]:
        held = sum(len(item.question) + len(item.material) + len(item.answer) for item in pairs)
        share = min(1.0, rows / max(1, len(pairs)), characters / max(1, held))
        return np.unique(np.linspace(0, max(0, len(pairs) - 1), int(share * len(pairs))).astype(np.int64))

    chosen = thinned(evaluated, MOST_ROWS // 4, MOST_CHARACTERS // 4)
    return thinned(train, MOST_ROWS - len(chosen), 3 * MOST_CHARACTERS // 4), chosen


def _covered(train: Sequence[Pair], evaluated: Sequence[Pair]) -> list[tuple[int, int]]:
    """(training row, evaluation row) where the one holds nine tenths of the other's question, and of its material.

    A row that holds so much of a text has one of any tenth of its grams: only the rarest ones are looked up.
    """
    same: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(evaluated):
        same[item.question, item.material].append(index)
    members = list(same.values())
    asked = list(grams_of([question for question, _ in same], COVERAGE_GRAM))
    materials = list(grams_of([material for _, material in same], COVERAGE_GRAM))
    # Where there is material the question may be one that many rows have (次の文章を要約してください).
    looked_up = [
        material if len(material) >= LEAST_GRAMS else question
        for question, material in zip(asked, materials, strict=True)
    ]
    every = np.concatenate([np.zeros(0, np.uint32), *looked_up])
    known, counts = np.unique(every, return_counts=True)
    seeds: dict[int, list[int]] = defaultdict(list)
    for index, grams in enumerate(looked_up):
        if len(asked[index]) < LEAST_GRAMS:
            continue
        missing = int((1 - COVERAGE) * len(grams) + 1e-9)
        rarity = counts[np.searchsorted(known, grams)]
        for gram in grams[np.argsort(rarity, kind="stable")[: missing + 1]]:
            seeds[int(gram)].append(index)
    wanted = np.fromiter(sorted(seeds), np.uint32, len(seeds))
    found: list[tuple[int, int]] = []
    texts = grams_of([f"{item.question}\n{item.material}\n{item.answer}" for item in train], COVERAGE_GRAM)
    for row, grams in enumerate(texts):
        place = np.searchsorted(wanted, grams) if len(wanted) else np.zeros(0, np.int64)
        hit = grams[(place < len(wanted))] if len(wanted) else grams[:0]
        hit = hit[wanted[place[place < len(wanted)]] == hit]
        for index in sorted({index for gram in hit for index in seeds[int(gram)]}):
            whole = shared(asked[index], grams) >= COVERAGE * len(asked[index])
            if whole and shared(materials[index], grams) >= COVERAGE * len(materials[index]):
                found += [(row, member) for member in members[index]]
    return found
