"""Near duplicates among question-and-answer pairs: MinHash over character trigrams finds candidates, the exact Jaccard
index of the trigrams decides.

Questions and answers are compared apart: joined, a pair of questions with opposite answers (融点, 沸点) comes out as near.
Rewritten texts are out of reach: a person's own words for the same share hardly a trigram.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from .rules import normalised

_Codes = NDArray[np.uint32]
_Keys = NDArray[np.uint64]

GRAM = 3
PERMUTATIONS, BANDS = 128, 32
# A pair is one where answers and questions are so near; a text that is contained in another counts as near too.
ANSWERS, QUESTIONS, CONTAINED, CONTAINED_QUESTIONS = 0.8, 0.5, 0.9, 0.8
# Short answers (はい) are equal by chance: there the question has to be nearer.
SHORT = 20
# Members of a bucket that are compared with each other; of a larger one only those whose questions share a bucket too.
_ALL_PAIRS, _NEIGHBOURS = 64, 16
_NUMBER = re.compile(r"\d+|[〇一二三四五六七八九十百千万億兆]+")
_CHUNK_CHARACTERS = 1 << 20
_HELD = 1 << 20  # pairs that are held before equal ones are left out


@dataclass(frozen=True, slots=True)
class Pair:
    """A question with its material, and the answer; of plain text only the answer."""

    question: str
    material: str
    answer: str

    @property
    def digits(self) -> tuple[str, ...]:
        """The numbers in question and answer, which make another pair of it where they differ."""
        return numbers(f"{self.question}\n{self.answer}")


def numbers(text: str) -> tuple[str, ...]:
    """The numbers in a text, in order, those in kanji too."""
    return tuple(_NUMBER.findall(unicodedata.normalize("NFKC", text)))


def grams_of(texts: Sequence[str], size: int = GRAM) -> Iterator[_Codes]:
    """Of each text the different hashes of its character n-grams, sorted, [n] uint32: of the text as `rules.normalised`
    gives it. A text that is shorter than a gram is one gram.
    """
    chunk: list[str] = []
    held = 0
    for text in texts:
        chunk.append(normalised(text))
        held += len(chunk[-1])
        if held >= _CHUNK_CHARACTERS:
            yield from _grams(chunk, size)
            chunk, held = [], 0
    yield from _grams(chunk, size)


def _grams(texts: Sequence[str], size: int) -> Iterator[_Codes]:
    if not texts:
        return
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    padded = "".join(text + "\x00" * (size - 1) for text in texts)
    codes = np.frombuffer(padded.encode("utf-32-le", "surrogatepass"), dtype=np.uint32).astype(np.uint64)
    hashes = np.zeros(len(codes), dtype=np.uint64)
    for offset in range(size):
        hashes = hashes * np.uint64(0x100000001B3) + np.concatenate([codes[offset:], np.zeros(offset, np.uint64)])
    short = (_mixed(hashes) >> np.uint64(32)).astype(np.uint32)
    starts = np.cumsum(lengths + size - 1) - (lengths + size - 1)
    for start, length in zip(starts, lengths, strict=True):
        yield np.unique(short[start : start + max(length - size + 1, min(length, 1))])


def _mixed(values: _Keys) -> _Keys:
    """The last step of MurmurHash3's 64-bit mixer."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def signatures(grams: Sequence[_Codes], seed: int = 0) -> NDArray[np.uint32]:
    """MinHash signatures [texts, PERMUTATIONS]; those of texts without a gram are all ones."""
    random = np.random.default_rng(seed)
    factors = random.integers(1, 2**63, PERMUTATIONS, dtype=np.uint64) | np.uint64(1)
    obtained = np.full((len(grams), PERMUTATIONS), 2**32 - 1, dtype=np.uint32)
    sizes = np.fromiter(map(len, grams), np.int64, len(grams))
    filled = np.flatnonzero(sizes)
    ends = np.cumsum(sizes[filled])
    position = 0
    while position < len(filled):  # as many texts at a time as fit into the caches
        done = int(ends[position - 1]) if position else 0
        stop = max(position + 1, int(np.searchsorted(ends, done + (1 << 16))))
        chosen = filled[position:stop]
        joined = np.concatenate([grams[index] for index in chosen]).astype(np.uint64)
        starts = np.cumsum(sizes[chosen]) - sizes[chosen]
        for number, factor in enumerate(factors):
            hashed = ((joined * factor) >> np.uint64(32)).astype(np.uint32)
            obtained[chosen, number] = np.minimum.reduceat(hashed, starts)
        position = stop
    return obtained


def _bands(signature: NDArray[np.uint32]) -> Iterator[_Keys]:
    """A key [texts] for each band of a signature."""
    rows = PERMUTATIONS // BANDS
    for band in range(BANDS):
        key = np.zeros(len(signature), dtype=np.uint64)
        for column in range(band * rows, (band + 1) * rows):
            key = _mixed(key * np.uint64(0x9E3779B97F4A7C15) + signature[:, column])
        yield key


def _buckets(keys: _Keys) -> Iterator[NDArray[np.int64]]:
    """The indices of those with equal keys, for each key that several have."""
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    for start, stop in zip(np.concatenate([[0], edges]), np.concatenate([edges, [len(keys)]]), strict=True):
        if stop - start > 1:
            yield order[start:stop]


def _candidates(
    answers: NDArray[np.uint32], questions: NDArray[np.uint32], side: NDArray[np.bool_] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (first, second) whose answers share a bucket; between the sides only, where there are two."""
    found: list[NDArray[np.int64]] = []
    count = len(answers)
    seen: set[bytes] = set()
    divided: set[bytes] = set()
    asked = list(_bands(questions)) if count else []
    for keys in _bands(answers):
        for bucket in _buckets(keys):
            if len(bucket) <= _ALL_PAIRS:
                found.append(_pairs(bucket, count, side))
                continue
            name = bucket.tobytes()
            if name in seen:  # equal answers share every bucket
                continue
            seen.add(name)
            for part in asked:
                for inner in map(bucket.__getitem__, _buckets(part[bucket])):
                    if inner.tobytes() not in divided:
                        divided.add(inner.tobytes())
                        found.append(_pairs(inner, count, side))
        if found and sum(map(len, found[1:])) > _HELD + len(found[0]):
            found = [_different(found)]
    pairs = _different(found) if found else np.zeros(0, np.int64)
    return pairs // count if count else pairs, pairs % count if count else pairs


@cache
def _every_two(count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The indices of every two of some things; `count` is at most _ALL_PAIRS."""
    first, second = np.triu_indices(count, 1)
    return first, second


def _different(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The different numbers of several arrays, in order; `np.unique` finds them by a hash table, many times as slowly."""
    values = np.sort(np.concatenate(parts))
    return values[np.concatenate([[True], values[1:] != values[:-1]])] if len(values) else values


def _pairs(bucket: NDArray[np.int64], count: int, side: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Pairs in a bucket as one number each: all of a small one, of a large one those near in order."""
    if side is not None:
        left, right = bucket[~side[bucket]], bucket[side[bucket]]
        if len(left) > _ALL_PAIRS and len(right) > _ALL_PAIRS:
            left = left[:_ALL_PAIRS]
        first, second = np.repeat(left, len(right)), np.tile(right, len(left))
    elif len(bucket) <= _ALL_PAIRS:
        a, b = _every_two(len(bucket))
        first, second = bucket[a], bucket[b]
    else:
        steps = [(bucket[:-step], bucket[step:]) for step in range(1, _NEIGHBOURS + 1)]
        first = np.concatenate([np.repeat(bucket[:1], len(bucket) - 1), *(pair[0] for pair in steps)])
        second = np.concatenate([bucket[1:], *(pair[1] for pair in steps)])
    return np.minimum(first, second) * count + np.maximum(first, second)


def shared(first: _Codes, second: _Codes) -> int:
    """How many grams two texts share."""
    return len(np.intersect1d(first, second, assume_unique=True))


def jaccard(first: _Codes, second: _Codes) -> float:
    """The Jaccard index of two sets of grams; 1 for two empty ones."""
    both = shared(first, second)
    union = len(first) + len(second) - both
    return both / union if union else 1.0


def near_pairs(pairs: Sequence[Pair], side: NDArray[np.bool_] | None = None) -> list[tuple[int, int]]:
    """The pairs (first, second) of near duplicates.

    A near duplicate has an answer of Jaccard index .8 and a question of .5 (of .8 where the answer is short), or an answer
    that is contained in the other and a question of .8; the same numbers, and a near material.

    Args:
        pairs: what is compared.
        side: [pairs]; only pairs of one True and one False are looked for.
    """
    answers, questions = (
        list(grams_of([item.answer for item in pairs])),
        list(grams_of([item.question for item in pairs])),
    )
    materials: dict[int, _Codes] = {}
    digits = [item.digits for item in pairs]
    sets = [frozenset(own) for own in digits]

    def material(index: int) -> _Codes:
        if index not in materials:
            materials[index] = next(grams_of([pairs[index].material]))
        return materials[index]

    def is_near(first: int, second: int) -> bool:
        # Cheap, and of rows made by a template (商品1, 商品2 ...) the answer for nearly all candidates.
        own, other = sets[first], sets[second]
        if own is not other and not (own <= other or other <= own):
            return False
        sizes = sorted((len(answers[first]), len(answers[second])))
        if not sizes[0] or sizes[0] < 0.5 * sizes[1]:
            return False
        both = shared(answers[first], answers[second])
        near = both >= ANSWERS * (sizes[0] + sizes[1] - both)
        if not near and both < CONTAINED * sizes[0]:
            return False
        least = QUESTIONS if near and sizes[0] > SHORT else CONTAINED_QUESTIONS
        if jaccard(questions[first], questions[second]) < least:
            return False
        if near and digits[first] != digits[second]:
            return False
        return jaccard(material(first), material(second)) >= ANSWERS

    first, second = _candidates(signatures(answers), signatures(questions), side)
    return [(int(a), int(b)) for a, b in zip(first, second, strict=True) if is_near(int(a), int(b))]


def groups(count: int, links: Sequence[tuple[int, int]]) -> list[int]:
    """Of each of `count` items the first one that it is linked to, over any number of links."""
    root = list(range(count))

    def find(item: int) -> int:
        while root[item] != item:
            root[item] = item = root[root[item]]
        return item

    for first, second in links:
        a, b = find(first), find(second)
        root[max(a, b)] = min(a, b)
    return [find(item) for item in range(count)]
