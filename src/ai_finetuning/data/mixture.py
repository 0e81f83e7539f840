"""Rows of an earlier training among new ones: how many, which, and where (docs/decisions/0096).

Everything is a pure function of the seed and the epoch, so that two integers are enough to resume and every process
sees the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import overload

import numpy as np

from .example import Example
from .examples import Joined, learnt_of, lengths_of
from .streams import Stream

# A share is a fraction with at most this denominator, so that the order is counted in integers.
_DENOMINATOR = 10**6


@dataclass(frozen=True)
class Taken:
    """Old rows that some epochs take.

    Attributes:
        rows: of old data, repeated ones counted each time.
        tokens, label_tokens: of them.
        share: of the label tokens of these epochs.
        passes: over the old data; above 1 rows repeat.
    """

    rows: int
    tokens: int
    label_tokens: int
    share: float
    passes: float


class Mixture(Sequence[Example]):
    """New rows and, behind them, old rows of which each epoch takes some.

    An epoch has every new row once. Old rows follow one after another through shuffled passes over the old data; the
    next one is due whenever its share of the label tokens so far has not been reached. So the label tokens of old rows
    are off from their share by less than one row, the largest, in any stretch of the run.

    Args:
        new: rows of an epoch.
        old: rows to take from; each has label tokens.
        share: of the label tokens, between 0 and 1.
        seed: of the order of the old rows.
    """

    def __init__(self, new: Sequence[Example], old: Sequence[Example], share: float, seed: int) -> None:
        part = Fraction(str(share)).limit_denominator(_DENOMINATOR)
        self.share = share
        self._examples = Joined(new, old)
        self._new, self._old = len(new), len(old)
        self._stream = Stream(len(old), first=len(new), seed=seed)
        labels = learnt_of(self._examples)
        self.lengths = lengths_of(self._examples)
        self._labels = labels
        # What a row adds to the balance of old against new: 0 where the share is met exactly.
        self.worth = np.where(np.arange(len(labels)) < self._new, -part.numerator, part.denominator - part.numerator)
        self.worth = self.worth * labels
        self._due = -int(self.worth[: self._new].sum())  # of an epoch
        self._pass_worth = int(self.worth[self._new :].sum())

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self._examples[index]

    def _taken_before(self, epoch: int) -> tuple[int, int]:
        """(old rows taken, balance) where an epoch begins: the fewest rows whose balance is not negative."""
        passes, rest = divmod(epoch * self._due, self._pass_worth)
        if rest == 0:
            return passes * self._old, 0
        gained = np.cumsum(self.worth[self._stream.places(passes * self._old, (passes + 1) * self._old)])
        rows = int(np.searchsorted(gained, rest)) + 1
        return passes * self._old + rows, int(gained[rows - 1]) - rest

    def documents(self, epoch: int) -> np.ndarray:
        """[rows] int64: places of the rows of an epoch, new ones first; an old one may occur again."""
        first, last = self._taken_before(epoch)[0], self._taken_before(epoch + 1)[0]
        return np.concatenate([np.arange(self._new), self._stream.places(first, last)])

    def merged(self, order: np.ndarray, worth: np.ndarray, epoch: int) -> np.ndarray:
        """[rows] int64: `order` with its old rows moved to where they are due.

        Args:
            order: [rows] int64, of the epoch's rows.
            worth: [rows] int64, what each row adds to the balance; of a packed one the sum of its documents.
            epoch: which begins with the balance of the ones before.
        """
        _, balance = self._taken_before(epoch)
        adds = worth[order] > 0
        old, new = order[adds], order[~adds]
        before = balance + np.cumsum(worth[old]) - worth[old]
        spent = np.cumsum(-worth[new])
        places = np.searchsorted(spent, before, side="right") + 1  # behind the first new row that makes it negative
        return np.insert(new, np.minimum(places, len(new)), old)

    def taken(self, epochs: int) -> Taken:
        """What the first epochs take of the old rows."""
        rows = self._stream.places(0, self._taken_before(epochs)[0])
        labels = int(self._labels[rows].sum())
        new = epochs * int(self._labels[: self._new].sum())
        return Taken(len(rows), int(self.lengths[rows].sum()), labels, labels / (labels + new), len(rows) / self._old)
