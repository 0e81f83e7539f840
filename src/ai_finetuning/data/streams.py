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
        self.rows, self.first = rows, first
        self._key = seed + ((number + 1) << 32)
        self._whole = lru_cache(maxsize=2)(self._permutation)
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
            return self.first + self._whole(number)[begin:end]
        parts, size = [np.empty(0, dtype=np.int64)], _PIECE * _PIECES
        # The short piece of the source's end lies anywhere, so that a block may begin before its multiple.
        for block in range(max(0, begin // size - 1), -(-end // size) + 1):
            start = self._begins(number, block)
            if start < end and begin < self._begins(number, block + 1):
                parts.append(self._block(number, block)[max(0, begin - start) : end - start])
        return self.first + np.concatenate(parts)

    def _permutation(self, number: int) -> NDArray[np.int64]:
        return np.random.Generator(np.random.Philox(key=[self._key, number])).permutation(self.rows)

    def _piece_order(self, number: int) -> tuple[NDArray[np.int64], int]:
        """(pieces of a pass in their order, where the source's last one stands among them)."""
        pieces = -(-self.rows // _PIECE)
        order = np.random.Generator(np.random.Philox(key=[self._key, number])).permutation(pieces)
        return order, int(np.flatnonzero(order == pieces - 1)[0])

    def _begins(self, number: int, block: int) -> int:
        """The row of a pass that a block begins with."""
        order, last = self._pieces(number)
        missing = _PIECE * len(order) - self.rows  # of the short piece
        return block * _PIECE * _PIECES - (missing if last < block * _PIECES else 0)

    def _block_order(self, number: int, block: int) -> NDArray[np.int64]:
        """[rows] int64 of a block."""
        starts = self._pieces(number)[0][block * _PIECES : (block + 1) * _PIECES] * _PIECE
        rows = (starts[:, None] + np.arange(_PIECE)).ravel()
        rows = rows[rows < self.rows]
        # A pass has fewer than 2^31 blocks; the first counter of a pass is its pieces'.
        generator = np.random.Generator(np.random.Philox(key=[self._key, (block + 1 << 32) + number]))
        return rows[generator.permutation(len(rows))]
