"""Which source every row of a run comes from: any 1,000 rows behind each other hold of each its share, to within one
row (docs/decisions/0152).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

# The rows that a share is held in, and windows of a segment, the part of an epoch that is in memory at a time.
WINDOW = 1000
_WINDOWS = 1024
SEGMENT = WINDOW * _WINDOWS

Sources = NDArray[np.uint16]


@dataclass(frozen=True)
class Segment:
    """A part of an epoch.

    Attributes:
        first: its first row among those of the run.
        sources: [rows] uint16, of each row its source.
        before: of each source the rows of the run before this part.
    """

    first: int
    sources: Sources
    before: tuple[int, ...]


@dataclass(frozen=True)
class _State:
    """Where a part begins.

    Attributes:
        recent: [WINDOW] uint16, the sources of the last rows; their counts are within one of the shares.
        counts: of each source the rows so far.
    """

    recent: Sources
    counts: tuple[int, ...]


def spread(counts: Sequence[int]) -> Sources:
    """[sum of counts] uint16: sources, each spread evenly."""
    due = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count] or [np.zeros(0)])
    sources = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
    return sources[np.argsort(due, kind="stable")]


class ByRows:
    """Sources in the order of a run whose shares count rows.

    The last 1,000 rows are repeated, but for as few rows as bring each source back to its share; a source that gains
    rows in a window loses none there. So the count of a source in a sliding window stays between those of two windows.
    Sources of whole passes have all their rows where an epoch ends.

    Args:
        shares: of each source; their sum is 1.
        rows: of each source its rows in an epoch where it is passed whole, else None.
        epoch_rows: mean rows of an epoch.
    """

    def __init__(self, shares: Sequence[Fraction], rows: Sequence[int | None], epoch_rows: Fraction) -> None:
        self._shares, self._rows, self._epoch_rows = tuple(shares), tuple(rows), epoch_rows
        # After so many rows everything begins anew: there whole passes have ended.
        self._round = epoch_rows if any(number is not None for number in rows) else Fraction(SEGMENT)
        self._states: dict[tuple[int, int], _State] = {}
        self._made_of = lru_cache(maxsize=2)(self._segment)

    def begins(self, epoch: int) -> int:
        """Rows of the run before an epoch."""
        return ceil(epoch * self._epoch_rows)

    def before(self, epoch: int) -> tuple[int, ...]:
        """Of each source the rows of the run before an epoch."""
        row = self.begins(epoch)
        part = self.segment(max(0, row - 1))
        counted = self._counted(part.sources[: row - part.first]).tolist()
        return tuple(before + more for before, more in zip(part.before, counted, strict=True))

    def segment(self, row: int) -> Segment:
        """The part of the run that a row is in."""
        number = int(row / self._round)
        within = row - self._start(number)
        first = self._length(number) % WINDOW
        return self._made_of(number, min(max(0, within - first) // SEGMENT, self._segments(number) - 1))

    def _start(self, number: int) -> int:
        """Rows before a round."""
        return ceil(number * self._round)

    def _length(self, number: int) -> int:
        return self._start(number + 1) - self._start(number)

    def _segments(self, number: int) -> int:
        """Parts of a round: SEGMENT rows each, the first with the rows that are no whole window more, the last with the rest."""
        return max(1, -(-(self._length(number) // WINDOW) // _WINDOWS))

    def _first_of(self, number: int, part: int) -> int:
        """The row of a round that a part begins with."""
        return part and part * SEGMENT + self._length(number) % WINDOW

    def _target(self, number: int) -> list[int] | None:
        """Of each source the rows of the run before a round; None where rounds hold no whole passes."""
        if all(rows is None for rows in self._rows):
            return None
        total = self._start(number)
        exact = [share * total for share in self._shares]
        taken = [floor(part) if rows is None else number * rows for part, rows in zip(exact, self._rows, strict=True)]
        others = [index for index, rows in enumerate(self._rows) if rows is None]
        others.sort(key=lambda index: taken[index] - exact[index])
        for index in others[: total - sum(taken)]:
            taken[index] += 1
        return taken

    def _segment(self, number: int, part: int) -> Segment:
        state = self._state(number, part)
        first = self._start(number) + self._first_of(number, part)
        return Segment(first, self._made(state, number, part)[0], state.counts)

    def _state(self, number: int, part: int) -> _State:
        """Where a part begins; those before it are made where they have not been."""
        if not self._states:
            nothing = (0,) * len(self._shares)
            self._states[0, 0] = _State(spread(self._next_counts(WINDOW, nothing, nothing, None, 1)), nothing)
        at = max(known for known in self._states if known <= (number, part))
        while at != (number, part):
            after = self._made(self._states[at], *at)[1]
            at = (at[0], at[1] + 1) if at[1] + 1 < self._segments(at[0]) else (at[0] + 1, 0)
            self._states[at] = after
        return self._states[at]

    def _made(self, state: _State, number: int, part: int) -> tuple[Sources, _State]:
        """(sources of the rows of a part, state behind it)."""
        rows, row = self._length(number), self._first_of(number, part)
        end = rows if part + 1 == self._segments(number) else self._first_of(number, part + 1)
        target = self._target(number + 1)
        recent, counts = state.recent, state.counts
        parts: list[Sources] = []
        while row < end:
            size, begins = (rows - row) % WINDOW or WINDOW, self._start(number) + row
            if rows < WINDOW and target is not None:
                made = spread([after - now for after, now in zip(target, counts, strict=True)])
            else:  # the first is the short one, so that the last window ends with the round
                kept = self._counted(recent[size:])
                part_counts = self._next_counts(begins + size, counts, kept.tolist(), target, (rows - row) // WINDOW)
                made = self._towards(recent[:size], part_counts, begins, counts)
            parts.append(made)
            recent = np.concatenate([recent, made])[-WINDOW:]
            counts = tuple(int(new + old) for new, old in zip(self._counted(made), counts, strict=True))
            row += size
        return np.concatenate(parts), _State(recent, counts)

    def _counted(self, sources: Sources) -> NDArray[np.int64]:
        return np.bincount(sources, minlength=len(self._shares))

    def _next_counts(
        self, end: int, counts: Sequence[int], kept: Sequence[int], target: Sequence[int] | None, left: int
    ) -> list[int]:
        """Of each source the next rows, up to a row of the run: of the last 1,000 rows each has its share within one.

        Args:
            end: the row that they end before.
            counts: rows so far.
            kept: those of the last 1,000 that stay among them.
            target: rows of the run that each has to have had after `left` windows.
        """
        if target is not None and left == 1 and not sum(kept):
            return [rows - now for rows, now in zip(target, counts, strict=True)]
        lowest = [ceil(WINDOW * share - 1) for share in self._shares]
        highest = [floor(WINDOW * share + 1) for share in self._shares]
        window = [max(0, low - rows) for low, rows in zip(lowest, kept, strict=True)]
        most = [high - rows for high, rows in zip(highest, kept, strict=True)]
        later = left if sum(kept) else left - 1  # whole windows behind these rows
        for index, rows in enumerate(target or ()):
            needed = rows - counts[index]
            window[index] = max(window[index], needed - later * highest[index])
            most[index] = max(window[index], min(most[index], needed - later * lowest[index]))
        wanted = [share * end - now for share, now in zip(self._shares, counts, strict=True)]
        for _ in range(WINDOW - sum(kept) - sum(window)):
            free = [index for index in range(len(window)) if window[index] < most[index]]
            late = max(free or range(len(window)), key=lambda index: wanted[index] - window[index])
            window[late] += 1
        for _ in range(sum(window) + sum(kept) - WINDOW):
            window[min(range(len(window)), key=lambda index: wanted[index] - window[index])] -= 1
        return window

    def _towards(self, recent: Sources, window: Sequence[int], row: int, counts: Sequence[int]) -> Sources:
        """The recent rows again, with as few exchanged as give the window its counts; each where it mends most."""
        sources = recent.copy()
        change = np.asarray(window) - self._counted(recent)
        less = [index for index, rows in enumerate(change.tolist()) for _ in range(-rows)]
        more = [index for index, rows in enumerate(change.tolist()) for _ in range(rows)]
        steps = np.arange(1, len(sources) + 1)

        def ahead(index: int) -> NDArray[np.float64]:
            begun = float(counts[index] - row * self._shares[index])
            return begun + np.cumsum(sources == index) - float(self._shares[index]) * steps

        for old, new in zip(less, more, strict=True):
            # From the exchanged row on `old` has one less and `new` one more; before it all stays.
            of_old, of_new = ahead(old), ahead(new)
            worst = np.max(
                [
                    np.maximum.accumulate(of_old),
                    1 - np.minimum.accumulate(of_old[::-1])[::-1],
                    -np.minimum.accumulate(of_new),
                    1 + np.maximum.accumulate(of_new[::-1])[::-1],
                ],
                axis=0,
            )
            sources[int(np.argmin(np.where(sources == old, worst, np.inf)))] = new
        return sources
