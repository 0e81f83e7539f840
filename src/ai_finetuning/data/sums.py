"""What the rows of a stream sum up to, without holding them: one sum for every few thousand rows of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .examples import Reader, blocks_of
from .streams import Stream

# Rows between two sums that are kept, and rows that are read together for them.
BLOCK = 4096
_BLOCKS = 64


class Sums:
    """Sums over the first rows of a stream.

    Args:
        stream: of the rows.
        read: gives the number of some rows that is summed, none below 0.
    """

    def __init__(self, stream: Stream, read: Reader) -> None:
        self.stream, self._read = stream, read
        self._edges = lru_cache(maxsize=4)(self._edges_of)

    @cached_property
    def of_pass(self) -> int:
        """The sum over a pass."""
        first = self.stream.first
        return sum(int(some.sum()) for some in blocks_of(self._read, first, first + self.stream.rows))

    def at(self, begin: int, end: int) -> NDArray[np.int64]:
        """[end - begin] int64: the numbers of rows `begin` to `end`, counted over all passes."""
        return self._read(self.stream.places(begin, end))

    def of_first(self, rows: int) -> int:
        """The sum over the first rows."""
        passes, rest = divmod(rows, self.stream.rows)
        whole = passes * self.of_pass if passes else 0
        return whole + sum(int(some.sum()) for some in self._chunks(rows - rest, rows))

    def until(self, due: Fraction) -> tuple[int, int]:
        """(the fewest first rows whose sum is not below `due`, their sum)."""
        passes, rest = divmod(due, self.of_pass)
        rows = passes * self.stream.rows
        if rest == 0:
            return rows, passes * self.of_pass
        wanted = -(-rest.numerator // rest.denominator)
        edges = self._edges(passes)
        block = int(np.searchsorted(edges, wanted)) - 1  # the one in which the sum is reached
        begin = rows + block * BLOCK
        gained = edges[block] + np.cumsum(self.at(begin, min(begin + BLOCK, rows + self.stream.rows)))
        more = int(np.searchsorted(gained, wanted))
        return begin + more + 1, passes * self.of_pass + int(gained[more])

    def between(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(rows between `begin` and `end` at most BLOCK from each other, the sums over those before them), both [edges]
        int64, without the two.
        """
        rows = self.stream.rows
        at, sums = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for number in range(
            begin // rows, -(-end // rows), max(1, BLOCK // rows)
        ):  # short passes lie between two edges
            at.append(number * rows + np.arange(0, rows, BLOCK))
            sums.append(number * self.of_pass + self._edges(number))
        edges, before = np.concatenate(at), np.concatenate(sums)
        inside = (begin < edges) & (edges < end)
        return edges[inside], before[inside]

    def _chunks(self, begin: int, end: int) -> Iterator[NDArray[np.int64]]:
        for first in range(begin, end, BLOCK * _BLOCKS):
            yield self.at(first, min(first + BLOCK * _BLOCKS, end))

    def _edges_of(self, number: int) -> NDArray[np.int64]:
        """[blocks] int64: the sum of a pass before each of its blocks."""
        rows = self.stream.rows
        if rows <= BLOCK:
            return np.zeros(1, dtype=np.int64)
        chunks = self._chunks(number * rows, (number + 1) * rows)
        sums = np.concatenate([np.add.reduceat(some, np.arange(0, len(some), BLOCK)) for some in chunks])
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sums[:-1])])
