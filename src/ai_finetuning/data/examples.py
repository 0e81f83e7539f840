"""Rows of tokens wherever they are: a list, a store, a choice of one of them, or several behind each other.

What is asked of all rows at once (lengths, label tokens, which are equal) is read off arrays where there are arrays, so
that no row is made for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from ..labels import IGNORED
from .example import Example
from .store.documents import content_of, further_of
from .store.mapped import StoredExamples

# Numbers that are read of some rows without those of all, by their names in a store, and what reads them.
Name = Literal["lengths", "learnt"]
Reader = Callable[[NDArray[np.int64]], NDArray[np.int64]]
_SOME = 2**20  # rows that are read together


class Chosen(Sequence[Example]):
    """Some rows of others, in this order.

    Attributes:
        base: the others.
        places: [rows] int64, of each its place among them.
    """

    def __init__(self, base: Sequence[Example], places: Iterable[int]) -> None:
        self.base = base
        self.places = np.fromiter(places, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, slice):
            return Chosen(self.base, self.places[index])
        return self.base[int(self.places[index])]


def chosen(base: Sequence[Example], places: Sequence[int]) -> Sequence[Example]:
    """Some rows of others; of a list they are a list."""
    return [base[place] for place in places] if isinstance(base, list) else Chosen(base, places)


class Joined(Sequence[Example]):
    """The rows of several sequences, one behind another.

    Attributes:
        parts: the sequences that have rows.
        ends: [parts] int64, of each the place behind its last row.
    """

    def __init__(self, *parts: Sequence[Example]) -> None:
        self.parts = [part for part in parts if len(part)]
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= place < len(self):
            raise IndexError(index)
        part = int(np.searchsorted(self.ends, place, side="right"))
        return self.parts[part][place - (int(self.ends[part - 1]) if part else 0)]


def _numbers(examples: Sequence[Example], name: str) -> NDArray[np.int64]:
    """[rows] int64: a number of every row, by its name in a store."""
    if isinstance(examples, Chosen):
        return _numbers(examples.base, name)[examples.places]
    if isinstance(examples, StoredExamples):
        return np.asarray(getattr(examples, name), dtype=np.int64)
    if isinstance(examples, Joined):
        return np.concatenate(
            [_NONE.get(name, np.zeros(0, np.int64)), *(_numbers(part, name) for part in examples.parts)]
        )
    numbers = [_OF_ONE[name](item) for item in examples]
    return np.array(numbers, dtype=np.int64) if numbers else _NONE.get(name, np.zeros(0, np.int64))


_NONE = {"forks": np.zeros((0, 3), np.int64)}
_OF_ONE: dict[str, Any] = {
    "lengths": len,
    "learnt": lambda item: int((item.labels[1:] != IGNORED).sum()),
    "characters": lambda item: item.characters,
    "marks": lambda item: item.mark,
    "forks": lambda item: item.fork or (0, 0, 0),
}


def lengths_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[rows] int64: the tokens of every row."""
    return _numbers(examples, "lengths")


def lengths_at(examples: Sequence[Example], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """[places] int64: the tokens of some rows, without those of all."""
    if isinstance(examples, Chosen):
        return lengths_at(examples.base, examples.places[places])
    if isinstance(examples, Joined):
        return _of_parts(examples, [partial(lengths_at, part) for part in examples.parts], places)
    if isinstance(examples, StoredExamples):
        return examples.lengths_at(places)
    return np.array([len(examples[place]) for place in places.tolist()], dtype=np.int64)


def _of_parts(examples: Joined, readers: Sequence[Reader], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """What each part's reader gives of its own rows among some."""
    part_of = np.searchsorted(examples.ends, places, side="right")
    obtained = np.empty(len(places), dtype=np.int64)
    for number, read in enumerate(readers):
        own = part_of == number
        begins = examples.ends[number - 1] if number else 0
        obtained[own] = read(places[own] - begins)
    return obtained


def reader_of(examples: Sequence[Example], name: Name) -> Reader:
    """What reads a number of some rows. Those of a store are read when they are asked for; rows in memory are counted here,
    once.
    """
    if isinstance(examples, Chosen):
        read, chosen_places = reader_of(examples.base, name), examples.places
        return lambda places: read(chosen_places[places])
    if isinstance(examples, Joined):
        return partial(_of_parts, examples, [reader_of(part, name) for part in examples.parts])
    if isinstance(examples, StoredExamples):
        return {"lengths": examples.lengths_at, "learnt": examples.learnt_at}[name]
    return _numbers(examples, name).__getitem__


def blocks_of(read: Reader, first: int, last: int) -> Iterator[NDArray[np.int64]]:
    """A number of rows `first` to `last`, some of them at a time."""
    for begin in range(first, last, _SOME):
        yield read(np.arange(begin, min(begin + _SOME, last)))


def total_of(examples: Sequence[Example], name: Name) -> int:
    """The sum of a number over all rows, without those of a store in memory."""
    return sum(int(some.sum()) for some in blocks_of(reader_of(examples, name), 0, len(examples)))


def longest_of(examples: Sequence[Example]) -> int:
    """The tokens of the longest row."""
    return max(int(some.max()) for some in blocks_of(reader_of(examples, "lengths"), 0, len(examples)))


def learnt_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[rows] int64: the labels of every row that take loss; nothing predicts its first token."""
    return _numbers(examples, "learnt")


def characters_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[rows] int64: the characters of every row's label tokens."""
    return _numbers(examples, "characters")


def marks_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[rows] int64: 1 where people call the answer good, -1 where they call it bad, 0 where they say nothing."""
    return _numbers(examples, "marks")


def forks_of(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[rows, 3] int64: of every pair (prefix, rest of the chosen answer, rest of the rejected one); 0 for other rows."""
    return _numbers(examples, "forks")


def largest_id(examples: Sequence[Example]) -> int:
    """The largest token id, to be compared with the model's embedding rows; of a choice of a store that of all of it."""
    if isinstance(examples, StoredExamples):
        return examples.largest
    if isinstance(examples, Chosen):
        return largest_id(examples.base)
    if isinstance(examples, Joined):
        return max(map(largest_id, examples.parts))
    return max(int(item.input_ids.max()) for item in examples)


def names_of(examples: Sequence[Example]) -> Iterator[tuple[str, bytes, str]]:
    """(source, digest of the tokens, digest of the question) of every row: rows of equal tokens have equal digests."""
    if isinstance(examples, StoredExamples):
        yield from examples.names()
    elif isinstance(examples, Chosen) and isinstance(examples.base, StoredExamples):
        yield from examples.base.names(examples.places)
    elif isinstance(examples, Joined):
        for part in examples.parts:
            yield from names_of(part)
    else:
        for item in examples:
            yield item.source, content_of(item), item.question


def digest_of(examples: Sequence[Example]) -> str:
    """SHA-256 over tokens, labels, forks and marks; a whole store knows it."""
    if isinstance(examples, StoredExamples):
        return examples.digest
    if isinstance(examples, Joined) and len(examples.parts) == 1:
        return digest_of(examples.parts[0])
    digest = hashlib.sha256()
    for item in examples:
        digest.update(len(item).to_bytes(8, "little"))
        digest.update(item.input_ids.tobytes())
        digest.update(item.labels.tobytes())
        digest.update(further_of(item.fork, item.mark))
    return digest.hexdigest()
