"""The order of the data: a pure function of seed, epoch and step (docs/decisions/0003)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from .answers import AnswerRows
from .blocks import BlockedOrder
from .collate import Batch, collate, collate_answers
from .example import Example
from .examples import Reader, lengths_of, reader_of
from .mixed import Mixed, alone
from .mixture import Mixture
from .packing import pack
from .streams import WHOLE

# Rows of this many steps are sorted by length together: enough for narrow batches, few enough to stay random.
_WINDOW_STEPS = 16
_Row = TypeVar("_Row")


class Loader:
    """Batches of one rank.

    Args:
        examples: documents; of a Mixture each epoch has the new ones and a share of the old ones, of Mixed what
            their entries say. Their order, and that of more than a million documents, is made by blocks.
        rows_per_step: rows of an optimizer step over all ranks (batch size x accumulation steps).
        seed: of the order.
        packing: several documents a row, isolated from each other.
        max_length: capacity of a packed row.
        group_by_length: rows of similar length share a step's micro-batches (without packing).
        pad_token_id: what fills rows up.
        share: (rank, ranks) of the data ranks; this one takes every `ranks`-th row of a step.

    Attributes:
        answers: how rows of pairs, or of marked answers, become batches; None where labels alone count.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        rows_per_step: int,
        seed: int,
        packing: bool,
        max_length: int,
        group_by_length: bool,
        pad_token_id: int,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.answers: AnswerRows | None = None
        self._examples = examples
        self._rows_per_step = rows_per_step
        self._seed = seed
        self._packed = packing
        self._by_length = group_by_length and not packing
        self._pad_token_id = pad_token_id
        self._data_rank, self._data_size = share
        self._capacity = max_length
        self._mixture = examples if isinstance(examples, Mixture) else None
        self._blocks: BlockedOrder | None = None
        if isinstance(examples, Mixed) or (self._mixture is None and len(examples) > WHOLE):
            mixed = examples if isinstance(examples, Mixed) else alone(examples, seed)
            self._blocks = BlockedOrder(
                mixed.examples,
                mixed.streams,
                mixed.due,
                seed=seed,
                rows_per_step=rows_per_step,
                capacity=max_length if packing else None,
                by_length=self._by_length,
            )
        in_memory = self._mixture is None and self._blocks is None
        if self._blocks is None:
            documents = examples.examples if isinstance(examples, Mixture) else examples
            self._lengths: Reader = reader_of(documents, "lengths")
        self._rows = self._rows_of(np.arange(len(examples))) if in_memory else None
        self._epoch = lru_cache(maxsize=2)(self._rows_in_order)
        self._count = lru_cache(maxsize=2)(self._count_rows)  # asked for in every step

    def of_rank(self, share: tuple[int, int]) -> Loader:
        """The same rows and order, made once, for a place (rank, ranks) of the data ranks."""
        other = copy.copy(self)
        other._data_rank, other._data_size = share
        return other

    def __len__(self) -> int:
        """Optimizer steps in the first epoch; the last may have fewer rows."""
        return self.steps(0)

    def steps(self, epoch: int) -> int:
        """Optimizer steps in an epoch; of a mixture one epoch may take an old row more than another."""
        return -(-self._count(epoch) // self._rows_per_step)

    def steps_of(self, epochs: int) -> int:
        """Optimizer steps in the first epochs together."""
        if self._rows is not None:
            return epochs * len(self)
        return sum(self.steps(epoch) for epoch in range(epochs))

    @property
    def num_rows(self) -> int:
        """Rows in the first epoch, over all ranks."""
        return self._count(0)

    def _count_rows(self, epoch: int) -> int:
        if self._blocks is not None:
            return self._blocks.count(epoch)
        if self._mixture is not None and not self._packed:
            return len(self._mixture.documents(epoch))
        return len(self._rows) if self._rows is not None else len(self._epoch(epoch)[0])

    def _rows_of(self, documents: np.ndarray) -> list[list[int]]:
        """Rows of documents, packed or one by one."""
        if not self._packed:
            return [[int(place)] for place in documents]
        packed = pack(self._lengths(documents).tolist(), self._capacity)
        return [[int(documents[number]) for number in row] for row in packed]

    def _rows_in_order(self, epoch: int) -> tuple[list[list[int]], np.ndarray]:
        """(rows, [rows] int64: a permutation of them)."""
        mixture = self._mixture
        rows = self._rows if mixture is None else self._rows_of(mixture.documents(epoch))
        assert rows is not None
        generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
        order = generator.permutation(len(rows))
        if mixture is None:
            return rows, self._of_similar_length(rows, order, generator)
        # Old rows find their places last, so that no other order moves them away from there.
        worth = mixture.worth(rows)
        parts = [
            self._of_similar_length(rows, order[side], generator) for side in (worth[order] > 0, worth[order] <= 0)
        ]
        return rows, mixture.merged(np.concatenate(parts), worth, epoch)

    def _of_similar_length(
        self, rows: list[list[int]], order: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """The order with rows of similar length beside each other, where the run groups them.

        Inside a window rows are sorted by length, then whole steps are shuffled back; the short last step stays last.
        """
        if not self._by_length or not len(order):
            return order
        window = _WINDOW_STEPS * self._rows_per_step
        parts = []
        for first in range(0, len(order), window):
            part = order[first : first + window]
            lengths = self._lengths(np.array([rows[row][0] for row in part]))
            part = part[np.argsort(-lengths, kind="stable")]
            whole = len(part) // self._rows_per_step
            steps = [part[step * self._rows_per_step : (step + 1) * self._rows_per_step] for step in range(whole)]
            parts += [steps[step] for step in generator.permutation(whole)]
            if len(part) % self._rows_per_step:
                parts.append(part[whole * self._rows_per_step :])
        return np.concatenate(parts)

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> list[Batch]:
        """This rank's micro-batches of step `index` of `epoch`; the rows of all ranks do not depend on
        micro_batch_size, and every rank gets the same number of micro-batches (dealt).
        """
        return self._micro_batches(epoch, index, micro_batch_size, other=False)

    def other_answers(self, epoch: int, index: int, micro_batch_size: int) -> list[Batch]:
        """The same questions as micro_batches(), each with the answer to another one (`answers.others`)."""
        return self._micro_batches(epoch, index, micro_batch_size, other=True)

    def _micro_batches(self, epoch: int, index: int, micro_batch_size: int, *, other: bool) -> list[Batch]:
        first = index * self._rows_per_step
        rows = self._documents(epoch, first)
        share = (self._data_rank, self._data_size)
        return dealt(rows, share, micro_batch_size, lambda some: self._collate(some, other))

    def position(self, epoch: int, index: int) -> None:
        """Nothing that a checkpoint has to hold: epoch and step say it all."""

    def go_to(self, epoch: int, index: int, position: Mapping[str, Any] | None) -> None:
        """Nothing to do: every step can be asked for."""

    def behind(self, steps: int) -> tuple[int, int]:
        """(epoch, step of it) behind so many steps of a run."""
        epoch = 0
        while steps >= self.steps(epoch):  # with old rows among the new ones, epochs differ in length
            epoch, steps = epoch + 1, steps - self.steps(epoch)
        return epoch, steps

    def _documents(self, epoch: int, first: int) -> list[list[int]]:
        """The documents of each row of the step that begins with row `first` of an epoch."""
        last = first + self._rows_per_step
        if self._blocks is not None:
            return self._blocks.rows(epoch, first, last)
        documents, order = self._epoch(epoch)
        return [documents[row] for row in order[first:last]]

    def _collate(self, rows: list[list[int]], other: bool) -> Batch:
        if self.answers is not None:
            places = [row[0] for row in rows]
            return answer_batch(self._examples, places, self.answers, pad_token_id=self._pad_token_id, other=other)
        return collate(
            [[self._examples[document] for document in row] for row in rows],
            pad_token_id=self._pad_token_id,
            packed=self._packed,
        )


def dealt(
    rows: list[_Row], share: tuple[int, int], micro_batch_size: int, collated: Callable[[list[_Row]], Batch]
) -> list[Batch]:
    """The micro-batches of one of several ranks out of the rows of a step. Every rank gets as many: one that has fewer
    rows computes some without labels, since sharded weights are gathered by all ranks together.

    Args:
        share: (rank, ranks).
        collated: makes a micro-batch of some rows.
    """
    rank, ranks = share
    mine, most = rows[rank::ranks], -(-len(rows) // ranks)
    batches = [collated(mine[start : start + micro_batch_size]) for start in range(0, len(mine), micro_batch_size)]
    missing = -(-most // micro_batch_size) - len(batches)
    return batches + [collated(rows[:1]).without_labels()] * missing


def answer_batch(
    examples: Sequence[Example], places: Sequence[int], rows: AnswerRows, *, pad_token_id: int, other: bool = False
) -> Batch:
    """The micro-batch of the pairs, or marked answers, at these places of the data; with `other` of `rows.others`."""
    source = rows.others if other else examples
    assert source is not None
    return collate_answers([source[place] for place in places], places, rows, pad_token_id=pad_token_id, other=other)


def evaluation_batches(
    examples: Sequence[Example],
    *,
    batch_size: int,
    pad_token_id: int,
    packing_length: int | None = None,
    answers: AnswerRows | None = None,
    other: bool = False,
    rows: Sequence[list[int]] | None = None,
) -> list[Batch]:
    """Batches of rows of similar lengths, longest first, so that memory is tried at once.

    Args:
        packing_length: capacity of a packed row; None pads every document to the longest of its batch.
        answers: how pairs, or marked answers, become batches.
        other: the batches of `answers.others` in the same order.
        rows: a part of evaluation_rows(); None for all of them.
    """
    rows = evaluation_rows(examples, packing_length) if rows is None else rows
    if answers is not None:
        parts = [[row[0] for row in rows[start : start + batch_size]] for start in range(0, len(rows), batch_size)]
        return [answer_batch(examples, part, answers, pad_token_id=pad_token_id, other=other) for part in parts]
    return [
        collate(
            [[examples[document] for document in row] for row in rows[start : start + batch_size]],
            pad_token_id=pad_token_id,
            packed=packing_length is not None,
        )
        for start in range(0, len(rows), batch_size)
    ]


def evaluation_rows(examples: Sequence[Example], packing_length: int | None) -> list[list[int]]:
    """The rows of evaluation_batches in their order, each with the places of its documents in `examples`."""
    lengths = lengths_of(examples).tolist()
    rows = [[index] for index in range(len(examples))] if packing_length is None else pack(lengths, packing_length)
    rows.sort(key=lambda row: (-sum(lengths[document] for document in row), row[0]))
    return rows
