"""What losses over answers read of a micro-batch: which position predicts which label, and whose label it is.

A label list instead of a row of targets: where both answers of a pair go on from one prefix, its last position predicts two
different tokens, and what answers have in common counts for each of them (docs/preference.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..labels import IGNORED
from .example import Example
from .forks import CHOSEN, REJECTED, side_of

_Places = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """The labels of a micro-batch of pairs, or of marked answers, in the order of units, sides and places.

    Attributes:
        index: [labels] int64, where in the row of all documents a label is predicted.
        targets: [labels] int64.
        owner: [labels] int64: 2 * (sides * unit + side), one more for a label behind the first m of its answer, where m
            is the number of labels of the pair's shorter answer.
        counts: [units, sides] int64, labels of every answer; sides are 2 of pairs (chosen, rejected), 1 of marked answers.
        padded: [labels] int64, index in padded rows, flattened; None where documents fork, which padded rows cannot.
        good: [units] bool, the marks; None for pairs.
        reference: [units, sides, 2] fp32, log-probabilities before step 1 over the first m labels and the rest; None
            where the loss has none, or they are not known yet.
        num_units: pairs, or marked answers, that have labels; the host's number.
    """

    index: Tensor
    targets: Tensor
    owner: Tensor
    counts: Tensor
    padded: Tensor | None
    good: Tensor | None
    reference: Tensor | None
    num_units: int

    def without_labels(self) -> Answers:
        """The same units with nothing to count."""
        padded = None if self.padded is None else self.padded[:0]
        return replace(
            self,
            index=self.index[:0],
            targets=self.targets[:0],
            owner=self.owner[:0],
            padded=padded,
            counts=torch.zeros_like(self.counts),
            num_units=0,
        )

    def changed(self, change: Callable[[Tensor], Tensor]) -> Answers:
        """With every tensor as `change` gives it."""
        given: dict[str, Any] = {}
        for name, value in vars(self).items():
            given[name] = change(value) if isinstance(value, Tensor) else value
        return Answers(**given)


@dataclass
class AnswerRows:
    """How rows of pairs, or of marked answers, become batches; execution fills it in as the run is built.

    Attributes:
        shared: the two answers of a pair go on from one prefix (a document with a fork); else they are two documents.
        reference: [examples, 2, 2] fp32 log-probabilities before step 1, by example: of a pair as in Answers; of a marked
            answer its own, and those of `others`.
        others: for each marked example its question with the answer to another one (mismatched()).
    """

    shared: bool = True
    reference: Tensor | None = None
    others: Sequence[Example] | None = None

    def documents(self, examples: Sequence[Example]) -> list[Example]:
        """The documents of examples, in order: one each, or both sides of unshared pairs."""
        if self.shared:
            return list(examples)
        return [
            document
            for example in examples
            for document in ((side_of(example, CHOSEN), side_of(example, REJECTED)) if example.fork else (example,))
        ]

    def of(self, examples: Sequence[Example], places: Sequence[int], width: int, *, other: bool = False) -> Answers:
        """The labels of a micro-batch.

        Args:
            examples: its pairs or marked answers.
            places: theirs in the data.
            width: of its padded rows.
            other: they are those of `others`.
        """
        forked = bool(examples[0].fork)
        sides = 2 if forked else 1
        starts = [0, *accumulate(map(len, self.documents(examples)))]
        index, targets, owner, padded, counts = [], [], [], [], []
        document = 0
        for unit, example in enumerate(examples):
            own = [_labels_of(example, side) for side in range(sides)]
            counts.append([len(ids) for _, ids, _ in own])
            for side, (predictor, ids, alone) in enumerate(own):
                row = document if self.shared or not forked else document + side
                index.append(starts[row] + (predictor if self.shared else alone))
                padded.append(row * width + alone)
                targets.append(ids)
                owner.append(2 * (sides * unit + side) + (np.arange(len(ids)) >= min(counts[-1])))
            document += 1 if self.shared or not forked else 2
        reference = None
        if self.reference is not None:
            kept = self.reference[torch.as_tensor(np.asarray(places, dtype=np.int64))]
            reference = kept if forked else kept[:, 1:] if other else kept[:, :1]
        return Answers(
            index=_joined(index),
            targets=_joined(targets),
            owner=_joined(owner),
            counts=torch.tensor(counts),
            padded=None if forked and self.shared else _joined(padded),
            good=None if forked else torch.tensor([example.mark > 0 for example in examples]),
            reference=reference,
            num_units=sum(min(of) > 0 for of in counts),
        )


def _joined(parts: Sequence[NDArray[np.integer]]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))


def _labels_of(example: Example, side: int) -> tuple[_Places, _Places, _Places]:
    """Of every label of one answer: where in the example's row it is predicted, its id, and where in its conversation alone.

    Nothing predicts a conversation's first token.
    """
    whole = side_of(example, side) if example.fork else example
    at = np.flatnonzero(whole.labels[1:] != IGNORED)
    return places_of(example, side)[at], whole.labels[1:][at].astype(np.int64), at


def places_of(example: Example, side: int) -> _Places:
    """[tokens of one conversation] int64: where in the example's row each of its tokens lies."""
    if not example.fork:
        return np.arange(len(example))
    prefix, chosen, rejected = example.fork
    rest = np.arange(chosen) if side == CHOSEN else chosen + np.arange(rejected)
    return np.concatenate([np.arange(prefix), prefix + rest])


def longest_conversation(examples: Sequence[Example]) -> int:
    """Tokens of the longest one: of a pair the longer of its two, whatever its row holds."""
    return max(
        sum((*example.fork[:1], max(example.fork[1:]))) if example.fork else len(example) for example in examples
    )


def positions_of(example: Example) -> _Places:
    """[tokens] int64: positions in their conversation; they run on from the prefix in each answer."""
    if not example.fork:
        return np.arange(len(example))
    prefix, chosen, rejected = example.fork
    return np.concatenate([np.arange(prefix + chosen), prefix + np.arange(rejected)])


class Mismatched(Sequence[Example]):
    """For each marked answer its question with the answer to another row, for KTO's reference point.

    Which one is a matter of the seed alone: rows stand in one random ring, and each takes the answer of the row behind it. So
    the same questions and answers meet in every epoch, whatever the order, the steps and the ranks are, and what the
    reference model says of them is computed once.

    Args:
        examples: marked answers.
        seed: of the ring.
        most: tokens that a row may have; a longer answer is cut.
    """

    def __init__(self, examples: Sequence[Example], seed: int, most: int) -> None:
        ring = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(len(examples))
        self._examples, self._most = examples, most
        self._behind = np.empty(len(examples), dtype=np.int64)
        self._behind[ring] = np.roll(ring, -1)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, place: int) -> Example:  # type: ignore[override]
        own, other = self._examples[int(place)], self._examples[int(self._behind[place])]
        question, answer = slice(_answer_start(own)), slice(_answer_start(other), None)
        ids, labels = (
            np.concatenate([mine[question], theirs[answer]])[: self._most].astype(np.int32)
            for mine, theirs in (
                (own.input_ids, other.input_ids),
                (np.full_like(own.labels, IGNORED), other.labels),
            )
        )
        return Example(ids, labels, source=own.source, mark=own.mark)

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))


def _answer_start(example: Example) -> int:
    """Where the last run of labels begins."""
    learnt = np.flatnonzero(example.labels != IGNORED)
    gaps = np.flatnonzero(np.diff(learnt) > 1)
    return int(learnt[gaps[-1] + 1] if len(gaps) else learnt[0])
