"""Which source every row of a run comes from where shares count label tokens, a part of an epoch at a time
(docs/decisions/0189).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .shares import Segment
from .sums import Sums

# Rows of a part of an epoch: some 15 MB while it is made.
PART = 2**18


@dataclass(frozen=True)
class _Place:
    """A place in the order of a run.

    Attributes:
        rows, tokens: of each source the rows of the run before it, and their label tokens.
    """

    rows: tuple[int, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Edges:
    """Rows of an epoch whose sums are known: a place between two of them has few rows of each source around it.

    A row that an edge stands before is due no sooner than the edge, the sum over those before it; the rows before it are due
    no later. So the edges in the order in which they are due, equal ones by source, are places of the epoch's order.

    Attributes:
        rows, tokens: of each source [its edges] int64; the first and the last are the epoch's ends.
        sources: [edges] uint16, of each edge but those ends its source, in the order in which they are due.
        least, most: [edges + 1] int64, after so many edges the rows of the run that stand before there: at least, and at
            most before the next edge.
    """

    rows: list[NDArray[np.int64]]
    tokens: list[NDArray[np.int64]]
    sources: NDArray[np.uint16]
    least: NDArray[np.int64]
    most: NDArray[np.int64]

    def around(self, row: int) -> tuple[_Place, list[int]]:
        """(a place not behind a row of the run, of each source the row that its rows before the given one end before)."""
        below = self._passed(int(np.searchsorted(self.most[:-1], row, side="right")))
        above = self._passed(int(np.searchsorted(self.least[1:], row)))
        rows, tokens = (
            tuple(int(own[at]) for own, at in zip(of, below, strict=True)) for of in (self.rows, self.tokens)
        )
        return _Place(rows, tokens), [int(own[at + 1]) for own, at in zip(self.rows, above, strict=True)]

    def _passed(self, edges: int) -> list[int]:
        """Of each source how many of so many edges are its own."""
        counted: list[int] = np.bincount(self.sources[:edges], minlength=len(self.rows)).tolist()
        return counted


class ByTokens:
    """Sources in the order of a run whose shares count label tokens.

    A row stands where its middle is due: where the source's tokens before it and half of its own are its share of the
    run's. An epoch has of each weighted source the fewest rows that bring it to its share.

    Args:
        sums: of the label tokens of each source.
        shares: of each source; their sum is 1.
        rows: of each source its rows in an epoch where it is passed whole, else None.
        epoch_tokens: of an epoch, of all sources.
    """

    def __init__(
        self,
        sums: Sequence[Sums],
        shares: Sequence[Fraction],
        rows: Sequence[int | None],
        epoch_tokens: Fraction,
    ) -> None:
        self._sums, self._shares, self._rows = sums, shares, rows
        self._epoch_tokens = epoch_tokens
        self._starts: list[_Place] = []
        self._made = lru_cache(maxsize=2)(self._segment)
        self._places = lru_cache(maxsize=4)(self._place)
        self._edges = lru_cache(maxsize=2)(self._edges_of)

    def begins(self, epoch: int) -> int:
        """Rows of the run before an epoch."""
        return sum(self.before(epoch))

    def before(self, epoch: int) -> tuple[int, ...]:
        """Of each source the rows of the run before an epoch."""
        return self._start(epoch).rows

    def segment(self, row: int) -> Segment:
        """The part of an epoch that a row of the run is in."""
        while not self._starts or self.begins(len(self._starts) - 1) <= row:
            self._start(len(self._starts))
        epoch = bisect_right(self._starts, row, key=lambda place: sum(place.rows)) - 1
        return self._made(epoch, (row - self.begins(epoch)) // PART)

    def _start(self, epoch: int) -> _Place:
        """Where an epoch begins."""
        while len(self._starts) <= epoch:
            number = len(self._starts)
            parts = [
                sums.until(number * share * self._epoch_tokens)
                if rows is None
                else (number * rows, number * rows // sums.stream.rows * sums.of_pass)
                for sums, share, rows in zip(self._sums, self._shares, self._rows, strict=True)
            ]
            self._starts.append(_Place(tuple(rows for rows, _ in parts), tuple(tokens for _, tokens in parts)))
        return self._starts[epoch]

    def _segment(self, epoch: int, part: int) -> Segment:
        first = self.begins(epoch) + part * PART
        begin = self._places(epoch, first)
        end = self._places(epoch, min(first + PART, self.begins(epoch + 1)))
        return Segment(first, self._sources(epoch, begin, end.rows)[0], begin.rows)

    def _place(self, epoch: int, row: int) -> _Place:
        """Where a row of the run stands: the rows around it are put in order."""
        for number in (epoch, epoch + 1):
            if row == self.begins(number):
                return self._start(number)
        begin, end = self._edges(epoch).around(row)
        sources, tokens = self._sources(epoch, begin, end)
        more = np.bincount(sources[: row - sum(begin.rows)], minlength=len(end)).tolist()
        return _Place(
            tuple(rows + taken for rows, taken in zip(begin.rows, more, strict=True)),
            tuple(
                before + int(own[:taken].sum()) for before, own, taken in zip(begin.tokens, tokens, more, strict=True)
            ),
        )

    def _sources(
        self, epoch: int, begin: _Place, end: Sequence[int]
    ) -> tuple[NDArray[np.uint16], list[NDArray[np.int64]]]:
        """(sources of the rows from a place up to a row of each source, in order; of each source their label tokens)."""
        tokens = [sums.at(*ends) for sums, *ends in zip(self._sums, begin.rows, end, strict=True)]
        due = [
            self._due(epoch, index, before + np.cumsum(own), own / 2)
            for index, (before, own) in enumerate(zip(begin.tokens, tokens, strict=True))
        ]
        return _in_order(due), tokens

    def _due(
        self, epoch: int, index: int, tokens: NDArray[np.int64], less: NDArray[np.float64] | float = 0.0
    ) -> NDArray[np.floating[Any]]:
        """When so many label tokens of a source since the run began, less some, are due. Tokens are counted from the pass in
        which the epoch begins, so that halves of them are exact; that an order by them may be put together from parts
        rests on sums and quotients that are rounded never falling where the exact ones do not.
        """
        sums, share = self._sums[index], self._shares[index]
        begun = self.before(epoch)[index] // sums.stream.rows * sums.of_pass
        offset = float(begun - epoch * share * self._epoch_tokens)
        return (tokens - begun - less + offset) / float(share)

    def _edges_of(self, epoch: int) -> _Edges:
        start, end = self._start(epoch), self._start(epoch + 1)
        rows, tokens, due = [], [], []
        for index, sums in enumerate(self._sums):
            edges, before = sums.between(start.rows[index], end.rows[index])
            rows.append(np.concatenate([[start.rows[index]], edges, [end.rows[index]]]))
            tokens.append(np.concatenate([[start.tokens[index]], before, [end.tokens[index]]]))
            due.append(self._due(epoch, index, before))
        sources = _in_order(due)
        steps = [np.diff(own) for own in rows]
        least, most = np.empty((2, len(sources) + 1), dtype=np.int64)
        least[0], most[0] = self.begins(epoch), sum(int(own[1]) for own in rows)
        for index, own in enumerate(steps):
            passed = np.flatnonzero(sources == index) + 1
            least[passed], most[passed] = own[:-1], own[1:]
        return _Edges(rows, tokens, sources, np.cumsum(least), np.cumsum(most))


def _in_order(due: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.uint16]:
    """[all] uint16: the sources of what is due, first what is due first, equals by source."""
    sources = np.repeat(np.arange(len(due), dtype=np.uint16), [len(own) for own in due])
    return sources[np.argsort(np.concatenate(due), kind="stable")]
