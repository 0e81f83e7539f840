"""Several sources as one run's data, each with its share or its passes (docs/decisions/0152)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, overload

import numpy as np

from ..config.mixture import TOKENS, Entry
from .by_tokens import ByTokens
from .example import Example
from .examples import Name, reader_of
from .shares import ByRows, Segment
from .streams import Stream
from .sums import Sums


class Due(Protocol):
    """Says which source every row of a run comes from."""

    def begins(self, epoch: int) -> int:
        """Rows of the run before an epoch."""
        ...

    def before(self, epoch: int) -> tuple[int, ...]:
        """Of each source the rows of the run before an epoch."""
        ...

    def segment(self, row: int) -> Segment:
        """The part of the run that a row is in."""
        ...


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
        sums = self.sums("learnt") if self._by_tokens else []
        worth = [of.of_pass for of in sums] if self._by_tokens else list(sizes)
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
        self.due: Due = ByTokens(sums, shares, rows, size) if self._by_tokens else ByRows(shares, rows, size)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        return self.examples[index]

    def sums(self, name: Name) -> list[Sums]:
        """Of each source the sums of a number over its rows."""
        read = reader_of(self.examples, name)
        return [Sums(stream, read) for stream in self.streams]

    def taken_first(self) -> list[SourceShare]:
        """What the first epoch takes of every source."""
        rows = self.due.before(1)
        tokens, labels = (
            [sums.of_first(count) for sums, count in zip(self.sums(name), rows, strict=True)]
            for name in ("lengths", "learnt")
        )
        counted = labels if self._by_tokens else rows
        return [
            SourceShare(entry.name, stream.rows, count, whole, label, part / sum(counted))
            for entry, stream, count, whole, label, part in zip(
                self._entries, self.streams, rows, tokens, labels, counted, strict=True
            )
        ]


def alone(examples: Sequence[Example], seed: int) -> Mixed:
    """One source, passed once an epoch, by blocks."""
    return Mixed(examples, [len(examples)], [Entry(("",), epochs=1)], seed)
