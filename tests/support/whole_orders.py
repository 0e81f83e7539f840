"""The orders by label tokens as they were while each held an epoch whole: what those made by parts have to be, bit for bit."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai_finetuning.data.shares import Segment
from ai_finetuning.data.store.mapped import StoredExamples


class Counted(StoredExamples):
    """A store of which nothing but numbers can be asked.

    Args:
        count: of its rows.
        learnt: the label tokens of the rows at some places; the tokens are 5 more.
    """

    def __init__(self, count: int, learnt: Callable[[NDArray[np.int64]], NDArray[np.int64]]) -> None:
        self._count, self._learnt = count, learnt

    def __getitem__(self, index: Any) -> Any:
        raise AssertionError("no row is read for the order")

    def learnt_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._learnt(places)

    def lengths_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._learnt(places) + 5

    @property
    def learnt(self) -> NDArray[np.int64]:
        return self._learnt(np.arange(self._count))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.learnt + 5


class WholePasses:
    """streams.Stream, of which every pass is made whole."""

    def __init__(self, rows: int, *, first: int, key: int, whole: int, piece: int, pieces: int) -> None:
        self.rows, self._first, self._key = rows, first, key
        self._large, self._piece, self._pieces = rows > whole, piece, pieces

    def places(self, begin: int, end: int) -> NDArray[np.int64]:
        first, last = begin // self.rows, -(-end // self.rows)
        passes = [np.empty(0, np.int64), *(self._of_pass(number) for number in range(first, last))]
        return self._first + np.concatenate(passes)[begin - first * self.rows : end - first * self.rows]

    def _of_pass(self, number: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.Philox(key=[self._key, number]))
        if not self._large:
            return generator.permutation(self.rows)
        order = generator.permutation(-(-self.rows // self._piece))
        parts = []
        for block in range(-(-len(order) // self._pieces)):
            chosen = order[block * self._pieces : (block + 1) * self._pieces]
            rows = (chosen[:, None] * self._piece + np.arange(self._piece)).ravel()
            rows = rows[rows < self.rows]
            own = np.random.Generator(np.random.Philox(key=[self._key, (block + 1 << 32) + number]))
            parts.append(rows[own.permutation(len(rows))])
        return np.concatenate(parts)


class WholeEpochs:
    """by_tokens.ByTokens, of which a part is an epoch."""

    def __init__(
        self,
        streams: Sequence[Any],
        tokens: NDArray[np.int64],
        shares: Sequence[Fraction],
        rows: Sequence[int | None],
        epoch_tokens: Fraction,
    ) -> None:
        self._streams, self._tokens, self._shares, self._rows = streams, tokens, shares, rows
        self._epoch_tokens = epoch_tokens
        self._of_pass = [int(tokens[stream.places(0, stream.rows)].sum()) for stream in streams]
        self._begins = [0]

    def begins(self, epoch: int) -> int:
        while len(self._begins) <= epoch:
            self._begins.append(sum(self._taken_before(len(self._begins))))
        return self._begins[epoch]

    def segment(self, row: int) -> Segment:
        while self._begins[-1] <= row:
            self.begins(len(self._begins))
        return self.epoch(bisect_right(self._begins, row) - 1)

    def _taken_before(self, epoch: int) -> tuple[int, ...]:
        return tuple(
            self._until(index, epoch * self._shares[index] * self._epoch_tokens) if rows is None else epoch * rows
            for index, rows in enumerate(self._rows)
        )

    def _until(self, index: int, due: Fraction) -> int:
        stream = self._streams[index]
        passes, rest = divmod(due, self._of_pass[index])
        if rest == 0:
            return passes * stream.rows
        gained = np.cumsum(self._tokens[stream.places(passes * stream.rows, (passes + 1) * stream.rows)])
        return passes * stream.rows + int(np.searchsorted(gained, -(-rest.numerator // rest.denominator))) + 1

    def epoch(self, epoch: int) -> Segment:
        before, after = self._taken_before(epoch), self._taken_before(epoch + 1)
        due = []
        for index, stream in enumerate(self._streams):
            begun = before[index] // stream.rows * stream.rows  # where the pass begins
            tokens = self._tokens[stream.places(begun, after[index])]
            middle = np.cumsum(tokens) - tokens / 2
            earlier = begun // stream.rows * self._of_pass[index]
            offset = float(earlier - epoch * self._shares[index] * self._epoch_tokens)
            due.append((middle[before[index] - begun :] + offset) / float(self._shares[index]))
        sources = np.repeat(np.arange(len(due), dtype=np.uint16), [len(part) for part in due])
        return Segment(self.begins(epoch), sources[np.argsort(np.concatenate(due), kind="stable")], before)


class WholeReplay:
    """mixture.Mixture, which read the numbers of all rows."""

    def __init__(self, new: NDArray[np.int64], old: NDArray[np.int64], share: float, stream: Any) -> None:
        part = Fraction(str(share)).limit_denominator(10**6)
        self._new, self._old, self._stream = len(new), len(old), stream
        labels = np.concatenate([new, old])
        self.worth = np.where(np.arange(len(labels)) < self._new, -part.numerator, part.denominator - part.numerator)
        self.worth = self.worth * labels
        self._due = -int(self.worth[: self._new].sum())
        self._pass_worth = int(self.worth[self._new :].sum())

    def taken_before(self, epoch: int) -> tuple[int, int]:
        passes, rest = divmod(epoch * self._due, self._pass_worth)
        if rest == 0:
            return passes * self._old, 0
        gained = np.cumsum(self.worth[self._stream.places(passes * self._old, (passes + 1) * self._old)])
        rows = int(np.searchsorted(gained, rest)) + 1
        return passes * self._old + rows, int(gained[rows - 1]) - rest
