"""The rows of one source in shuffled passes, one pass behind another, without holding the order of large ones."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

# Up to so many rows a pass is one permutation; above it is shuffled by blocks of so many (docs/scale.md).
WHOLE = 1_000_000
# Rows that stay together until their block is shuffled, and such pieces of a block: what lies together is read together.
_PIECE = 1024
_PIECES = 1024


class Stream:
    """Rows of a source without an end: shuffled pass after shuffled pass, each a function of the seed and its number.

    Above WHOLE rows, pieces of 1,024 consecutive rows are shuffled, and the rows of every 1,024 pieces among
    themselves: a row may come anywhere in a pass, and neighbours come within a million rows of each other.

    Args:
        rows: of a pass.
        first: the place of the source's first row among all examples.
        seed: of the run.
        number: of the source, so that sources are shuffled differently.
    """

    def __init__(self, rows: int, *, first: int, seed: int, number: int = 0) -> None:
        self.rows, self._first = rows, first
        self._key = seed + ((number + 1) << 32)
        self._whole = lru_cache(maxsize=4)(self._permutation)
        self._pieces = lru_cache(maxsize=2)(self._piece_order)
        self._block = lru_cache(maxsize=2)(self._block_order)

    def places(self, begin: int, end: int) -> NDArray[np.int64]:
        """[end - begin] int64: the places of rows `begin` to `end`, counted over all passes."""
        parts = [np.empty(0, dtype=np.int64)]
        for number in range(begin // self.rows, -(-end // self.rows)):
            start = number * self.rows
            parts.append(self._of_pass(number, max(0, begin - start), min(self.rows, end - start)))
        return np.concatenate(parts)

    def _of_pass(self, number: int, begin: int, end: int) -> NDArray[np.int64]:
        if self.rows <= WHOLE:
            return self._first + self._whole(number)[begin:end]
        parts, size = [], _PIECE * _PIECES
        # The short piece of the source's end lies anywhere, so that a block may begin before its multiple.
        for block in range(max(0, begin // size - 1), -(-end // size) + 1):
            start, order = self._block(number, block)
            parts.append(order[max(0, begin - start) : max(0, end - start)])
        return self._first + np.concatenate(parts)

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self._key, number])).permutation(self.rows)

    def _piece_order(self, number: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self._key, number])).permutation(-(-self.rows // _PIECE))

    def _block_order(self, number: int, block: int) -> tuple[int, NDArray[np.int64]]:
        """(row of the pass that the block begins with, [rows] int64 of it)."""
        order = self._pieces(number)
        chosen = order[block * _PIECES : (block + 1) * _PIECES]
        starts = chosen * _PIECE
        rows = (starts[:, None] + np.arange(_PIECE)).ravel()
        rows = rows[rows < self.rows]
        missing = _PIECE * len(order) - self.rows  # of the short piece
        before = block * _PIECE * _PIECES - (missing if (order[: block * _PIECES] == len(order) - 1).any() else 0)
        # A pass has fewer than 2^31 blocks; the first counter of a pass is its pieces'.
        generator = np.random.Generator(np.random.Philox(key=[self._key, (block + 1 << 32) + number]))
        return before, rows[generator.permutation(len(rows))]
