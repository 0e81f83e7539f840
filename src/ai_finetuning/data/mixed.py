"""Several sources as one run's data, each with its share or its passes (docs/decisions/0152)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from ..config.mixture import TOKENS, Entry
from .example import Example
from .examples import learnt_of, lengths_of
from .shares import ByRows, Segment
from .streams import Stream


class Due(Protocol):
    """Says which source every row of a run comes from."""

    def begins(self, epoch: int) -> int:
        """Rows of the run before an epoch."""
        ...

    def segment(self, row: int) -> Segment:
        """The part of the run that a row is in."""
        ...


class ByTokens:
    """Sources in the order of a run whose shares count label tokens.

    A row stands where its middle is due: where the source's tokens before it and half of its own are its share of the
    run's. An epoch has of each weighted source the fewest rows that bring it to its share. A part is an epoch.

    Args:
        streams: of each source.
        tokens: [rows] int64, the label tokens of every example.
        shares: of each source; their sum is 1.
        rows: of each source its rows in an epoch where it is passed whole, else None.
        epoch_tokens: of an epoch, of all sources.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        tokens: NDArray[np.int64],
        shares: Sequence[Fraction],
        rows: Sequence[int | None],
        epoch_tokens: Fraction,
    ) -> None:
        self._streams, self._tokens, self._shares, self._rows = streams, tokens, shares, rows
        self._epoch_tokens = epoch_tokens
        self._of_pass = [int(tokens[stream.places(0, stream.rows)].sum()) for stream in streams]
        self._begins = [0]
        self._made = lru_cache(maxsize=2)(self._segment)

    def begins(self, epoch: int) -> int:
        """Rows of the run before an epoch."""
        while len(self._begins) <= epoch:
            self._begins.append(sum(self._taken_before(len(self._begins))))
        return self._begins[epoch]

    def segment(self, row: int) -> Segment:
        """The epoch that a row of the run is in."""
        while self._begins[-1] <= row:
            self.begins(len(self._begins))
        return self._made(bisect_right(self._begins, row) - 1)

    def _taken_before(self, epoch: int) -> tuple[int, ...]:
        """Of each source the rows of the run before an epoch."""
        return tuple(
            self._until(index, epoch * self._shares[index] * self._epoch_tokens) if rows is None else epoch * rows
            for index, rows in enumerate(self._rows)
        )

    def _until(self, index: int, due: Fraction) -> int:
        """The fewest rows of a source with so many tokens."""
        stream = self._streams[index]
        passes, rest = divmod(due, self._of_pass[index])
        if rest == 0:
            return passes * stream.rows
        gained = np.cumsum(self._tokens[stream.places(passes * stream.rows, (passes + 1) * stream.rows)])
        return passes * stream.rows + int(np.searchsorted(gained, -(-rest.numerator // rest.denominator))) + 1

    def _segment(self, epoch: int) -> Segment:
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


@dataclass(frozen=True)
class SourceShare:
    """What the first epoch takes of a source.

    Attributes:
        name: of it.
        there: its rows.
        rows, tokens, label_tokens: that an epoch takes; repeated rows are counted each time.
        share: of the epoch's rows, or of its label tokens where these are counted.
    """

    name: str
    there: int
    rows: int
    tokens: int
    label_tokens: int
    share: float

    @property
    def passes(self) -> float:
        """Over its rows."""
        return self.rows / self.there


class Mixed(Sequence[Example]):
    """The rows of several sources, one source behind another, and the order in which a run takes them.

    Args:
        examples: of all sources.
        sizes: rows of each.
        entries: what was asked of each, in the order of `sizes`.
        seed: of the run.

    Attributes:
        examples: as they were given.
        streams: the rows of each source in its shuffled passes.
        due: which source each row of the run comes from.
    """

    def __init__(self, examples: Sequence[Example], sizes: Sequence[int], entries: Sequence[Entry], seed: int) -> None:
        self.examples, self._entries = examples, entries
        starts = [0, *np.cumsum(sizes).tolist()]
        self.streams = [
            Stream(rows, first=first, seed=seed, number=number)
            for number, (rows, first) in enumerate(zip(sizes, starts, strict=False))
        ]
        self._by_tokens = any(entry.by == TOKENS for entry in entries)
        tokens = learnt_of(examples) if self._by_tokens else np.empty(0, dtype=np.int64)
        worth = [
            int(tokens[first:last].sum()) if self._by_tokens else last - first
            for first, last in zip(starts, starts[1:], strict=False)
        ]
        passes = [entry.passes for entry in entries]
        whole = sum(number * part for number, part in zip(passes, worth, strict=True) if number is not None)
        weights = [entry.weight_exact for entry in entries]
        total = sum(weights, Fraction(0))
        # Beside sources of whole passes a weight is a share of all rows; among themselves weights are what they are of each other.
        size = whole / (1 - total) if whole else Fraction(sum(worth))
        shares = [
            weight / (Fraction(1) if whole else total) if number is None else number * part / size
            for weight, number, part in zip(weights, passes, worth, strict=True)
        ]
        rows = [None if number is None else number * count for number, count in zip(passes, sizes, strict=True)]
        self.due: Due = (
            ByTokens(self.streams, tokens, shares, rows, size) if self._by_tokens else ByRows(shares, rows, size)
        )

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]

    def taken_first(self) -> list[SourceShare]:
        """What the first epoch takes of every source."""
        rows = np.zeros(len(self.streams), dtype=np.int64)
        row, end = 0, self.due.begins(1)
        while row < end:
            part = self.due.segment(row)
            rows += np.bincount(part.sources[: end - part.first], minlength=len(rows))
            row = part.first + len(part.sources)
        lengths, learnt = lengths_of(self.examples), learnt_of(self.examples)
        places = [stream.places(0, int(count)) for stream, count in zip(self.streams, rows, strict=True)]
        tokens, labels = ([int(of[taken].sum()) for taken in places] for of in (lengths, learnt))
        counted = labels if self._by_tokens else rows.tolist()
        return [
            SourceShare(entry.name, stream.rows, int(count), whole, label, part / sum(counted))
            for entry, stream, count, whole, label, part in zip(
                self._entries, self.streams, rows, tokens, labels, counted, strict=True
            )
        ]


def alone(examples: Sequence[Example], seed: int) -> Mixed:
    """One source, passed once an epoch, by blocks."""
    return Mixed(examples, [len(examples)], [Entry(("",), epochs=1)], seed)
