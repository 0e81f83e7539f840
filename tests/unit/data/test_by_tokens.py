"""Shares of label tokens: the order that earlier versions held whole, made a part at a time."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.support.whole_orders import Counted, WholeEpochs, WholePasses, WholeReplay

from ai_finetuning.config.mixture import Entry, Sources, with_replay
from ai_finetuning.data import blocks, by_tokens, examples, mixture, streams, sums
from ai_finetuning.data.by_tokens import ByTokens
from ai_finetuning.data.examples import Chosen, Joined, learnt_of, lengths_of, longest_of, total_of
from ai_finetuning.data.mixed import Mixed
from ai_finetuning.data.mixture import Mixture, Replayed, replay

EPOCHS = 3


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 32 rows, a sum for every 8, passes by blocks of 64 rows from 150 rows on."""
    monkeypatch.setattr(by_tokens, "PART", 32)
    monkeypatch.setattr(sums, "BLOCK", 8)
    monkeypatch.setattr(sums, "_BLOCKS", 3)
    monkeypatch.setattr(examples, "_SOME", 50)
    monkeypatch.setattr(streams, "WHOLE", 150)
    monkeypatch.setattr(streams, "_PIECE", 8)
    monkeypatch.setattr(streams, "_PIECES", 8)


def whole_of(mixed: Mixed, seed: int) -> WholeEpochs:
    """The same order as earlier versions made it."""
    passes = [
        WholePasses(
            stream.rows,
            first=stream.first,
            key=seed + ((number + 1) << 32),
            whole=streams.WHOLE,
            piece=streams._PIECE,
            pieces=streams._PIECES,
        )
        for number, stream in enumerate(mixed.streams)
    ]
    by = mixed.due
    assert isinstance(by, ByTokens)
    return WholeEpochs(passes, learnt_of(mixed.examples), by._shares, by._rows, by._epoch_tokens)


LENGTHS: dict[str, Callable[[np.random.Generator, int], NDArray[np.int64]]] = {
    "any": lambda generator, count: generator.integers(1, 500, count),
    "some equal": lambda generator, count: generator.integers(1, 4, count),
    "all equal": lambda generator, count: np.full(count, 6),
    "some nothing": lambda generator, count: generator.integers(0, 3, count),
    "a few large": lambda generator, count: np.where(generator.random(count) < 0.02, 2000, 5),
}


def drawn(generator: random.Random) -> tuple[list[int], list[Entry]]:
    """(rows, entries) of two to five sources: weights, passes, or both; small ones are passed many times in an epoch."""
    count = generator.randint(2, 5)
    sizes = [generator.choice([3, 20, 100, 150, 151, 400, 1000]) for _ in range(count)]
    whole = generator.randint(0, count - 1)
    weights = [
        generator.choice([0.1, 0.25, 1 / 3, 0.0137, 0.9]) / (count if whole else 1) for _ in range(count - whole)
    ]
    entries = [Entry(("x",), epochs=generator.randint(1, 3)) for _ in range(whole)]
    entries += [Entry(("x",), weight=weight, by="tokens") for weight in weights]
    generator.shuffle(entries)
    return sizes, entries


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("seed", range(12))
def test_the_order_is_the_one_that_was_held_whole(seed: int, kind: str):
    """Its rows, where each epoch begins, and what stands before a part; parts asked for in turn, and from anywhere."""
    generator = random.Random(f"{seed} {kind}")
    sizes, entries = drawn(generator)
    numbers = LENGTHS[kind](np.random.default_rng(seed), sum(sizes))
    numbers[np.cumsum([0, *sizes[:-1]])] += 1  # no source without label tokens
    store = Counted(sum(sizes), numbers.__getitem__)
    mixed, again = (Mixed(store, sizes, entries, seed) for _ in range(2))
    whole = whole_of(mixed, seed)
    for epoch in range(EPOCHS):
        expected = whole.epoch(epoch)
        assert mixed.due.begins(epoch) == expected.first
        row, end = expected.first, whole.begins(epoch + 1)
        parts = []
        while row < end:
            part = mixed.due.segment(row)
            assert part.first == row
            counted = np.bincount(expected.sources[: row - expected.first], minlength=len(sizes))
            assert part.before == tuple(expected.before + counted)
            assert len(part.sources) == min(32, end - row)
            parts.append(part.sources)
            row += len(part.sources)
        assert np.array_equal(np.concatenate(parts), expected.sources)
        assert parts[0].dtype == expected.sources.dtype
    for row in generator.choices(range(whole.begins(EPOCHS)), k=20):
        part, expected = again.due.segment(row), whole.segment(row)
        assert part.first <= row < part.first + len(part.sources)
        begin = part.first - expected.first
        assert np.array_equal(part.sources, expected.sources[begin : begin + len(part.sources)])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(6))
def test_the_places_of_an_epoch_are_those_of_before(seed: int):
    sizes, entries = [700, 90, 151], [Entry(("x",), weight=weight, by="tokens") for weight in (0.5, 0.2, 0.3)]
    numbers = np.random.default_rng(seed).integers(1, 90, sum(sizes))
    mixed = Mixed(Counted(sum(sizes), numbers.__getitem__), sizes, entries, seed)
    order = blocks.BlockedOrder(
        mixed.examples, mixed.streams, mixed.due, seed=seed, rows_per_step=8, capacity=None, by_length=False
    )
    whole = whole_of(mixed, seed)
    for epoch in (2, 0, 1):
        expected, obtained = whole.epoch(epoch), order.rows(epoch, 0, 10**6)
        places = np.empty(len(expected.sources), dtype=np.int64)
        for index, stream in enumerate(whole._streams):
            own = np.flatnonzero(expected.sources == index)
            places[own] = stream.places(expected.before[index], expected.before[index] + len(own))
        assert [place for row in obtained for place in row] == places.tolist()
        assert [row[0] for row in order.rows(epoch, 333, 345)] == places[333:345].tolist()


def test_the_order_of_millions_of_rows_is_the_one_that_was_held_whole():
    """With the sizes of parts and blocks that runs have."""
    sizes = [1_700_000, 300_000, 40_000]
    entries = [Entry(("x",), epochs=1), *(Entry(("x",), weight=weight, by="tokens") for weight in (0.3, 0.1))]
    numbers = np.random.default_rng(5).integers(1, 900, sum(sizes))
    mixed = Mixed(Counted(sum(sizes), numbers.__getitem__), sizes, entries, 7)
    whole = whole_of(mixed, 7)
    for epoch in range(2):
        expected, row = whole.epoch(epoch), mixed.due.begins(epoch)
        while row < mixed.due.begins(epoch + 1):
            part = mixed.due.segment(row)
            begin = row - expected.first
            assert np.array_equal(part.sources, expected.sources[begin : begin + len(part.sources)])
            row += len(part.sources)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [3, 149, 150, 151, 512, 1003])
def test_passes_are_those_of_before(rows: int):
    stream = streams.Stream(rows, first=10, seed=3, number=1)
    whole = WholePasses(rows, first=10, key=3 + (2 << 32), whole=150, piece=8, pieces=8)
    assert np.array_equal(stream.places(0, 3 * rows), whole.places(0, 3 * rows))
    generator = random.Random(rows)
    for _ in range(50):
        begin, end = sorted(generator.randint(0, 3 * rows) for _ in range(2))
        assert np.array_equal(stream.places(begin, end), whole.places(begin, end))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("rows", [3, 20, 151, 400])
def test_sums_are_those_of_all_rows(rows: int):
    numbers = np.random.default_rng(rows).integers(0, 9, rows)
    stream = streams.Stream(rows, first=0, seed=3)
    obtained = sums.Sums(stream, numbers.__getitem__)
    whole = np.concatenate([[0], np.cumsum(numbers[stream.places(0, 3 * rows)])])
    assert [obtained.of_first(row) for row in range(3 * rows + 1)] == whole.tolist()
    for row in range(0, 2 * rows, 7):
        edges, before = obtained.between(row, row + rows)
        assert np.array_equal(before, whole[edges])
        assert np.diff([row, *edges, row + rows]).max() <= 8
    for due in (Fraction(1, 3), Fraction(whole[-1] - 1), Fraction(int(whole[rows]) * 7 + 1, 5)):
        first, gained = obtained.until(due)
        assert whole[first] == gained >= due
        assert whole[first - 1] < due


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
@pytest.mark.parametrize("rows", [5, 60, 400])
def test_old_rows_of_a_small_run_are_taken_as_before(share: float, rows: int):
    generator = np.random.default_rng(rows)
    new, old = generator.integers(0, 40, 300), generator.integers(1, 40, rows)
    obtained = Mixture(Counted(300, new.__getitem__), Counted(rows, old.__getitem__), share, seed=3)
    stream = WholePasses(rows, first=300, key=3 + (1 << 32), whole=150, piece=8, pieces=8)
    expected = WholeReplay(new, old, share, stream)
    for epoch in range(5):
        assert obtained._taken_before(epoch) == expected.taken_before(epoch)
        documents = obtained.documents(epoch).tolist()
        first, last = (expected.taken_before(number)[0] for number in (epoch, epoch + 1))
        assert documents == [*range(300), *stream.places(first, last).tolist()]
        packed = [documents[start : start + 1 + start % 3] for start in range(0, len(documents), 3)]
        assert obtained.worth(packed).tolist() == [int(expected.worth[row].sum()) for row in packed]


@pytest.mark.usefixtures("small")
def test_old_rows_of_a_large_run_come_as_an_entry_of_them_does(monkeypatch: pytest.MonkeyPatch):
    new, old = (np.random.default_rng(seed).integers(1, 40, rows) for seed, rows in ((1, 500), (2, 70)))
    stores = Counted(500, new.__getitem__), Counted(70, old.__getitem__)
    assert isinstance(replay(*stores, 0.2, 3), Mixture)
    monkeypatch.setattr(mixture, "WHOLE", 500)
    assert isinstance(replay(*stores, 0.2, 3, whole=True), Mixture)
    obtained = replay(*stores, 0.2, 3)
    assert isinstance(obtained, Replayed)
    entries = with_replay(Sources((Entry(("new",), epochs=1),)), "old", 0.2).entries
    expected = Mixed(Joined(*stores), (500, 70), entries, 3)
    for row in range(0, obtained.due.begins(2), 32):
        assert np.array_equal(obtained.due.segment(row).sources, expected.due.segment(row).sources)
    told, first = obtained.taken(1), expected.taken_first()[1]
    assert (told.rows, told.tokens, told.label_tokens) == (first.rows, first.tokens, first.label_tokens)
    assert told.passes == first.passes > 1
    assert told.share == pytest.approx(first.share)
    assert told.share == pytest.approx(0.2, abs=0.01)


@pytest.mark.usefixtures("small")
def test_numbers_are_summed_wherever_rows_are():
    store = Counted(300, np.arange(1, 301).__getitem__)
    rows = Joined(
        Chosen(store, range(0, 300, 3)), Chosen(Joined(store, Counted(9, np.arange(9).__getitem__)), [304, 2])
    )
    assert total_of(rows, "learnt") == learnt_of(rows).sum()
    assert total_of(rows, "lengths") == lengths_of(rows).sum()
    assert longest_of(rows) == lengths_of(rows).max()
    assert total_of([], "lengths") == 0


def test_twice_the_rows_take_no_more_memory():
    """Of an epoch that begins in the middle of passes, and of a place in it that is found from nothing."""

    def peak(count: int) -> int:
        sizes = [count * 4 // 5, count // 5]
        store = Counted(count, lambda places: 20 + (places * 2654435761 >> 7) % 500)
        entries = [Entry(("x",), weight=weight, by="tokens") for weight in (0.7, 0.3)]
        tracemalloc.start()
        due = Mixed(store, sizes, entries, 3).due
        due.segment((due.begins(1) + due.begins(2)) // 2)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    of_five_million = peak(5_000_000)
    assert of_five_million < 100e6
    assert peak(10_000_000) < 1.1 * of_five_million
