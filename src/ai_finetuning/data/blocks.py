"""The rows of a run in parts of which two are in memory, for mixtures and for more rows than one permutation holds."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .example import Example
from .examples import lengths_at
from .mixed import Due
from .packing import pack
from .streams import Stream

Places = NDArray[np.int64]

# Documents that are packed together: enough to fill 98 % and more, few enough to be packed again in every epoch.
PACKED = 16_384
# Rows of this many steps are sorted by length together.
_STEPS = 16


class BlockedOrder:
    """Rows of the epochs of a run, each with the places of its documents.

    Args:
        examples: of all sources.
        streams: the rows of each source.
        due: which source each row comes from.
        seed: of the order inside of windows.
        rows_per_step: of an optimizer step over all ranks.
        capacity: tokens of a packed row; None without packing.
        by_length: whether rows of similar length share a step.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        streams: Sequence[Stream],
        due: Due,
        *,
        seed: int,
        rows_per_step: int,
        capacity: int | None,
        by_length: bool,
    ) -> None:
        self._examples, self._streams, self._due = examples, streams, due
        self._seed, self._capacity = seed, capacity
        self._window = _STEPS * rows_per_step if by_length else None
        self._rows_per_step = rows_per_step
        self._part = lru_cache(maxsize=2)(self._documents_of_part)
        self._sorted = lru_cache(maxsize=2)(self._similar)
        self._packed = lru_cache(maxsize=2)(self._packed_rows)
        self._ends = lru_cache(maxsize=2)(self._packed_ends)
        self._counted: dict[int, int] = {}

    def count(self, epoch: int) -> int:
        """Rows of an epoch."""
        if self._capacity is None:
            return self._documents_in(epoch)
        if epoch not in self._counted:
            self._counted[epoch] = int(self._ends(epoch)[-1])
        return self._counted[epoch]

    def rows(self, epoch: int, first: int, last: int) -> list[list[int]]:
        """The documents of rows `first` to `last` of an epoch; fewer where it ends before."""
        last = min(last, self.count(epoch))
        if self._capacity is not None:
            return self._rows_of_windows(epoch, first, last)
        if self._window is None:
            places = self._documents(epoch, first, last)
        else:
            size = self._window
            windows = range(first // size, -(-last // size))
            parts = [self._sorted(epoch, number) for number in windows]
            places = np.concatenate(parts)[first - windows.start * size :][: last - first]
        return [[place] for place in places.tolist()]

    def _documents_in(self, epoch: int) -> int:
        return self._due.begins(epoch + 1) - self._due.begins(epoch)

    def _documents_of_part(self, first: int) -> tuple[Places, NDArray[np.uint16]]:
        """(places of the documents, their sources) of the part that begins with a row of the run."""
        part = self._due.segment(first)
        places = np.empty(len(part.sources), dtype=np.int64)
        for index, stream in enumerate(self._streams):
            own = np.flatnonzero(part.sources == index)
            places[own] = stream.places(part.before[index], part.before[index] + len(own))
        return places, part.sources

    def _of_run(self, epoch: int, first: int, last: int) -> tuple[Places, NDArray[np.uint16]]:
        row, end = self._due.begins(epoch) + first, self._due.begins(epoch) + last
        places, sources = [np.empty(0, np.int64)], [np.empty(0, np.uint16)]
        while row < end:
            begins = self._due.segment(row).first
            all_places, all_sources = self._part(begins)
            places.append(all_places[row - begins : end - begins])
            sources.append(all_sources[row - begins : end - begins])
            row += len(places[-1])
        return np.concatenate(places), np.concatenate(sources)

    def _documents(self, epoch: int, first: int, last: int) -> Places:
        """The places of documents `first` to `last` of an epoch."""
        return self._of_run(epoch, first, last)[0]

    def _generator(self, epoch: int, window: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self._seed + (1 << 62), (epoch << 32) + window]))

    def _similar(self, epoch: int, number: int) -> Places:
        """The documents of a window of steps. Each place keeps its source; which row of the source stands there goes by
        length, so that the steps have rows of similar length, in a random order. A short last step stays last.
        """
        assert self._window is not None
        first = number * self._window
        places, sources = self._of_run(epoch, first, min(first + self._window, self._documents_in(epoch)))
        lengths = lengths_at(self._examples, places)
        whole, steps = len(places) // self._rows_per_step, -(-len(places) // self._rows_per_step)
        turn = np.concatenate([self._generator(epoch, number).permutation(whole), np.arange(whole, steps)])
        rank = turn[np.arange(len(places)) // self._rows_per_step]
        obtained = np.empty_like(places)
        for source in np.unique(sources):
            own = np.flatnonzero(sources == source)
            obtained[own[np.argsort(rank[own], kind="stable")]] = places[own][np.argsort(-lengths[own], kind="stable")]
        return obtained

    def _packed_rows(self, epoch: int, number: int) -> list[list[int]]:
        """The rows of a window of documents, shuffled."""
        assert self._capacity is not None
        first = number * PACKED
        places = self._documents(epoch, first, min(first + PACKED, self._documents_in(epoch)))
        rows = pack(lengths_at(self._examples, places).tolist(), self._capacity)
        order = self._generator(epoch, number).permutation(len(rows))
        return [places[rows[index]].tolist() for index in order]

    def _packed_ends(self, epoch: int) -> Places:
        """[windows] int64: rows of an epoch up to the end of every window."""
        windows = -(-self._documents_in(epoch) // PACKED)
        return np.cumsum([len(self._packed_rows(epoch, number)) for number in range(windows)])

    def _rows_of_windows(self, epoch: int, first: int, last: int) -> list[list[int]]:
        ends = self._ends(epoch)
        obtained: list[list[int]] = []
        number = int(np.searchsorted(ends, first, side="right"))
        while first < last:
            begins = int(ends[number - 1]) if number else 0
            obtained += self._packed(epoch, number)[first - begins : last - begins]
            first, number = int(ends[number]), number + 1
        return obtained
