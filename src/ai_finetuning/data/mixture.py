"""Rows of an earlier training among new ones: how many, which, and where (docs/decisions/0096).

Everything is a pure function of the seed and the epoch, so that two integers are enough to resume and every process
sees the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from typing import overload

import numpy as np

from ..config.mixture import TOKENS, Entry
from .example import Example
from .examples import Joined, reader_of, total_of
from .mixed import Mixed
from .streams import WHOLE, Stream
from .sums import Sums

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
        self.examples = Joined(new, old)
        self._new, self._old = len(new), len(old)
        self._stream = Stream(len(old), first=len(new), seed=seed)
        self._read = reader_of(self.examples, "learnt")
        self._labels = Sums(self._stream, self._read)
        self._new_labels = total_of(new, "learnt")
        # What a label token adds to the balance of old against new: 0 where the share is met exactly.
        self._of_new, self._of_old = -part.numerator, part.denominator - part.numerator

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        return self.examples[index]

    def _taken_before(self, epoch: int) -> tuple[int, int]:
        """(old rows taken, balance) where an epoch begins: the fewest rows whose balance is not negative."""
        due = -epoch * self._of_new * self._new_labels
        rows, labels = self._labels.until(Fraction(due, self._of_old))
        return rows, labels * self._of_old - due

    def worth(self, rows: Sequence[Sequence[int]]) -> np.ndarray:
        """[rows] int64: what each row adds to the balance of old against new, by the places of its documents."""
        documents = np.fromiter(chain.from_iterable(rows), dtype=np.int64)
        worth = np.where(documents < self._new, self._of_new, self._of_old) * self._read(documents)
        ends = np.cumsum([len(row) for row in rows])
        return np.add.reduceat(worth, np.concatenate([[0], ends[:-1]]))

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
        lengths = Sums(self._stream, reader_of(self.examples, "lengths"))
        return _taken(self._taken_before(epochs)[0], lengths, self._labels, epochs * self._new_labels)


class Replayed(Mixed):
    """The same for any number of rows: an order of which a part is held, that of an entry of new rows, passed once an epoch,
    and one of old ones (docs/decisions/0189).

    Args:
        new, old, share, seed: as those of a Mixture.
    """

    def __init__(self, new: Sequence[Example], old: Sequence[Example], share: float, seed: int) -> None:
        entries = [Entry(("",), epochs=1), Entry(("",), weight=share, by=TOKENS)]
        super().__init__(Joined(new, old), (len(new), len(old)), entries, seed)
        self.share = share

    def taken(self, epochs: int) -> Taken:
        """What the first epochs take of the old rows."""
        lengths, (new, labels) = self.sums("lengths")[1], self.sums("learnt")
        return _taken(self.due.before(epochs)[1], lengths, labels, epochs * new.of_pass)


def replay(
    new: Sequence[Example], old: Sequence[Example], share: float, seed: int, *, whole: bool = False
) -> Mixture | Replayed:
    """Old rows among new ones; the order is made by parts where an epoch has more than WHOLE rows.

    Args:
        new, old, share, seed: as those of a Mixture.
        whole: whether the order is held whole in any case, as it was by earlier versions.
    """
    by_parts = None if whole else Replayed(new, old, share, seed)
    if by_parts is not None and by_parts.due.begins(1) > WHOLE:
        return by_parts
    return Mixture(new, old, share, seed)


def _taken(rows: int, lengths: Sums, labels: Sums, new: int) -> Taken:
    """What so many old rows are, beside so many label tokens of new ones."""
    learnt = labels.of_first(rows)
    return Taken(rows, lengths.of_first(rows), learnt, learnt / (learnt + new), rows / labels.stream.rows)
