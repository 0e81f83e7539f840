"""Sources with shares or passes: exact in any 1,000 rows, the same for everybody, and nothing of it held whole."""

from __future__ import annotations

import os
import random
import tracemalloc
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_finetuning.config.mixture import Entry
from ai_finetuning.data import blocks, shares, streams
from ai_finetuning.data.example import Example
from ai_finetuning.data.examples import learnt_of, lengths_of
from ai_finetuning.data.loader import Loader
from ai_finetuning.data.mixed import Mixed
from ai_finetuning.data.packing import pack
from ai_finetuning.data.shares import WINDOW, ByRows
from ai_finetuning.data.store.mapped import StoredExamples
from ai_finetuning.data.streams import Stream
from ai_finetuning.labels import IGNORED


def rows(count: int, seed: int = 1) -> list[Example]:
    """Rows of random lengths; the second token of a row is its place."""
    generator = np.random.default_rng(seed)
    obtained = []
    for number in range(count):
        length = int(generator.integers(4, 30))
        ids = np.full(length, 7, dtype=np.int32)
        ids[1] = number
        labels = ids.copy()
        labels[: int(generator.integers(1, length - 1))] = IGNORED
        obtained.append(Example(ids, labels, 1, f"row {number}"))
    return obtained


def loader(examples, *, packing: bool = False, group: bool = True, share: tuple[int, int] = (0, 1)) -> Loader:
    return Loader(
        examples,
        rows_per_step=8,
        seed=3,
        packing=packing,
        max_length=64,
        group_by_length=group,
        pad_token_id=0,
        share=share,
    )


def places(data: Loader, epoch: int, index: int, size: int = 3) -> list[int]:
    """The documents of a step."""
    obtained = []
    for batch in data.micro_batches(epoch, index, size):
        if not batch.num_tokens:
            continue
        for ids, lengths in zip(batch.input_ids.tolist(), batch.lengths, strict=True):
            obtained += [ids[start + 1] for start in np.cumsum([0, *lengths[:-1]])]
    return obtained


def epoch_of(data: Loader, epoch: int) -> list[int]:
    return [place for index in range(data.steps(epoch)) for place in places(data, epoch, index)]


def sequence(by: ByRows, epochs: int) -> np.ndarray:
    row, parts = 0, []
    while row < by.begins(epochs):
        part = by.segment(row)
        assert part.first == row
        if parts:
            assert part.before == tuple(np.bincount(np.concatenate(parts), minlength=len(part.before)))
        parts.append(part.sources)
        row += len(part.sources)
    return np.concatenate(parts)[: by.begins(epochs)]


def off(sources: np.ndarray, wanted: list[Fraction]) -> float:
    """How far a source is from its share in 1,000 rows, at most."""
    worst = 0.0
    for index, share in enumerate(wanted):
        counted = np.concatenate([[0], np.cumsum(sources == index)])
        worst = max(worst, float(abs(counted[WINDOW:] - counted[:-WINDOW] - float(share * WINDOW)).max()))
    return worst


def drawn(generator: random.Random) -> tuple[list[Fraction], list[int | None], Fraction]:
    """Shares of two to six sources: weights, passes, or both, with at least 1,000 rows an epoch."""
    count = generator.randint(2, 6)
    whole = generator.randint(0, count)
    passed = [generator.randint(600, 4000) for _ in range(whole)]
    weights = [Fraction(generator.randint(1, 999), 1000 * count) for _ in range(count - whole)]
    if not passed:
        return [part / sum(weights) for part in weights], [None] * count, Fraction(generator.randint(1000, 9000))
    size = Fraction(sum(passed)) / (1 - sum(weights))
    return [part / size for part in passed] + weights, [*passed, *[None] * len(weights)], size


@pytest.mark.parametrize("seed", range(12))
def test_any_thousand_rows_hold_the_shares_within_a_row(seed: int):
    """Across the ends of epochs too; and sources of whole passes have all their rows in every epoch."""
    wanted, passed, size = drawn(random.Random(seed))
    assert size >= WINDOW
    by = ByRows(wanted, passed, size)
    sources = sequence(by, 3)
    assert off(sources, wanted) <= 1
    for epoch in range(3):
        counted = np.bincount(sources[by.begins(epoch) : by.begins(epoch + 1)], minlength=len(wanted))
        assert all(number is None or number == counted[index] for index, number in enumerate(passed))


def test_shares_hold_across_parts_and_a_part_is_found_from_anywhere(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shares, "_WINDOWS", 3)
    monkeypatch.setattr(shares, "SEGMENT", 3 * WINDOW)
    wanted, passed = [Fraction(1, 3), Fraction(17, 60), Fraction(23, 60)], [None] * 3
    sources = sequence(ByRows(wanted, passed, Fraction(10_500)), 2)
    assert off(sources, wanted) <= 1
    assert abs(np.bincount(sources) - 21_000 * np.array(list(map(float, wanted)))).max() < 4
    again = ByRows(wanted, passed, Fraction(10_500)).segment(14_321)
    assert again.first == 12_000
    assert np.array_equal(again.sources, sources[12_000:15_000])


def test_a_small_share_comes_in_its_turn():
    wanted = [Fraction(9997, 10_000), Fraction(3, 10_000)]
    sources = sequence(ByRows(wanted, [None, None], Fraction(30_000)), 1)
    found = np.flatnonzero(sources)
    assert len(found) in (8, 9, 10)
    assert np.diff(found).min() > 1000


ENTRIES = (Entry(("a",), weight=0.7), Entry(("b",), epochs=2), Entry(("c",), weight=0.1))
SIZES = (900, 100, 300)


def source_of(place: int) -> int:
    return int(np.searchsorted(np.cumsum(SIZES), place, side="right"))


@pytest.mark.parametrize(("packing", "group"), [(False, False), (False, True), (True, False)])
def test_an_epoch_has_what_its_entries_say(packing: bool, group: bool):
    data = loader(Mixed(rows(sum(SIZES)), SIZES, ENTRIES, 3), packing=packing, group=group)
    run = [epoch_of(data, epoch) for epoch in range(3)]
    for epoch in run:
        counted = Counter(map(source_of, epoch))
        assert counted == {0: 700, 1: 200, 2: 100}
        of_b = Counter(place for place in epoch if source_of(place) == 1)
        assert set(of_b.values()) == {2}  # every row twice
    of_a = Counter(place for epoch in run for place in epoch if source_of(place) == 0)
    assert set(of_a.values()) == {2, 3}  # in turn: none is left out while another repeats
    assert len(of_a) == 900
    assert run[0] != run[1]
    if not packing:
        sources = np.array([source_of(place) for epoch in run for place in epoch])
        assert off(sources, [Fraction(7, 10), Fraction(2, 10), Fraction(1, 10)]) <= 1


def test_weights_alone_are_what_they_are_of_each_other():
    """And an epoch has as many rows as there are."""
    entries = (Entry(("a",), weight=3), Entry(("b",), weight=1))
    mixed = Mixed(rows(1000), (900, 100), entries, 3)
    assert [source.rows for source in mixed.taken_first()] == [750, 250]
    assert [source.passes for source in mixed.taken_first()] == [750 / 900, 2.5]
    epoch = epoch_of(loader(mixed, group=False), 0)
    assert sum(source.tokens for source in mixed.taken_first()) == sum(len(mixed[place]) for place in epoch)
    assert mixed.due.begins(4) == 4000


@pytest.mark.parametrize("weights", [(None, 0.3), (0.5, 0.5), (0.6, 0.3, 0.1)])
def test_tokens_hold_their_shares_in_any_stretch(weights: tuple[float | None, ...]):
    examples = rows(1300)
    sizes = (1000, 300) if len(weights) == 2 else SIZES
    entries = [
        Entry(("x",), epochs=1) if weight is None else Entry(("x",), weight=weight, by="tokens") for weight in weights
    ]
    mixed = Mixed(examples, sizes, entries, 3)
    data = loader(mixed, group=False)
    run = np.array([place for epoch in range(3) for place in epoch_of(data, epoch)])
    labels, source = learnt_of(examples)[run], np.searchsorted(np.cumsum(sizes), run, side="right")
    every = np.concatenate([[0], np.cumsum(labels)])
    for index in range(len(weights)):
        share = weights[index] or 1 - sum(filter(None, weights))
        own = np.concatenate([[0], np.cumsum(np.where(source == index, labels, 0))])
        error = own - share * every
        most = labels.max() * (1 + share * (len(weights) - 2)) + 1
        for window in (1, 50, 1000, len(run)):
            assert abs(error[window:] - error[:-window]).max() <= most
    told = [part.rows for part in mixed.taken_first()]
    assert told == np.bincount(source[: mixed.due.begins(1)], minlength=len(weights)).tolist()
    if weights[0] is None:  # passed whole in each epoch
        assert Counter(run[: mixed.due.begins(1)][source[: mixed.due.begins(1)] == 0].tolist()) == Counter(range(1000))


@pytest.mark.parametrize("packing", [False, True])
def test_the_order_is_that_of_the_seed_for_any_ranks_and_from_any_step(packing: bool):
    def made(share: tuple[int, int] = (0, 1), seed: int = 3) -> Loader:
        return loader(Mixed(rows(sum(SIZES)), SIZES, ENTRIES, seed), packing=packing, share=share)

    one, ranks = made(), [made((rank, 3)) for rank in range(3)]
    for epoch, index in ((2, 5), (0, 0), (1, one.steps(1) - 1)):  # no order of asking
        assert places(one, epoch, index) == places(made(), epoch, index)
        assert sorted(places(one, epoch, index)) == sorted(sum((places(rank, epoch, index) for rank in ranks), []))
        assert places(one, epoch, index, size=8) == places(one, epoch, index, size=1)
    assert places(one, 0, 0) != places(made(seed=4), 0, 0)


def test_rows_of_similar_length_share_a_step_in_a_mixture():
    def spread_of(group: bool) -> float:
        examples = rows(sum(SIZES))
        data = loader(Mixed(examples, SIZES, ENTRIES, 3), group=group)
        steps = [[len(examples[place]) for place in places(data, 0, index)] for index in range(data.steps(0))]
        return float(np.mean([max(step) - min(step) for step in steps]))

    assert spread_of(True) < 0.5 * spread_of(False)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 256 rows from 300 rows on, 100 documents packed together."""
    for module in (streams, __import__("ai_finetuning.data.loader", fromlist=["loader"])):
        monkeypatch.setattr(module, "WHOLE", 300)
    monkeypatch.setattr(streams, "_PIECE", 16)
    monkeypatch.setattr(streams, "_PIECES", 16)
    monkeypatch.setattr(blocks, "PACKED", 100)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("packing", "group"), [(False, False), (False, True), (True, False)])
def test_large_data_has_every_row_once_an_epoch(packing: bool, group: bool):
    data = loader(rows(1003), packing=packing, group=group)
    first, second = epoch_of(data, 0), epoch_of(data, 1)
    assert sorted(first) == sorted(second) == list(range(1003))
    assert first != second
    assert data.steps_of(2) == data.steps(0) + data.steps(1)
    again = loader(rows(1003), packing=packing, group=group)
    assert places(again, 1, 70 if not packing else 20) == places(data, 1, 70 if not packing else 20)


@pytest.mark.usefixtures("small_blocks")
def test_blocks_bring_rows_of_everywhere_together():
    stream = Stream(5003, first=10, seed=3)
    order = stream.places(0, 2 * 5003) - 10
    assert sorted(order[:5003]) == sorted(order[5003:]) == list(range(5003))
    assert np.array_equal(stream.places(4000, 6000) - 10, order[4000:6000])
    block = order[:256]
    assert len(set((block // 16).tolist())) >= 15  # of as many pieces as it has
    assert block.min() < 1000
    assert block.max() > 4000
    assert abs(np.diff(block)).mean() > 500  # neighbours of the data are not neighbours of the order


def test_windows_fill_rows():
    """Documents of the lengths that conversations have, in windows a tenth as long as those of a run."""
    generator = np.random.default_rng(2)
    lengths = np.minimum(generator.lognormal(4.6, 0.9, 1600).astype(int) + 8, 1024)
    packed = pack(lengths.tolist(), 1024)
    assert lengths.sum() / (1024 * len(packed)) > 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dolly_ja_train", "aozora_large"])
def test_real_data_fills_98_percent(name: str):
    """At 1,024 tokens, by windows of the size that large data has."""
    from ai_finetuning import JapaneseModel
    from ai_finetuning.config.data import DataConfig
    from ai_finetuning.data.prepare import load_examples

    shared = Path(os.environ.get("AIFT_SHARED", Path(__file__).resolve().parents[4] / "shared")) / "data"
    file = next(iter(sorted(shared.rglob(f"{name}.*"))), None)
    if file is None:
        pytest.skip(f"{name} is not below {shared} (AIFT_SHARED)")
    tokenizer = JapaneseModel("embedded:kotoha-tiny").ensure_tokenizer()
    config = DataConfig(max_length=1024, on_long="split" if name.startswith("aozora") else "drop", skip_bad_rows=True)
    examples, _, _ = load_examples(file, tokenizer, config)
    mixed = Mixed(examples, [len(examples)], [Entry((name,), epochs=1)], 3)
    data = Loader(mixed, rows_per_step=8, seed=3, packing=True, max_length=1024, group_by_length=False, pad_token_id=0)
    fill = int(lengths_of(examples).sum()) / (1024 * data.num_rows)
    print(f"{name}: {len(examples):,} documents, {fill:.2%} filled")
    assert fill >= 0.98, fill


@pytest.mark.slow
def test_four_times_the_rows_take_no_more_memory():
    """Of an order of which only lengths are asked."""

    class Lengths(StoredExamples):
        """A store of which nothing but the lengths can be asked."""

        def __init__(self, count: int) -> None:
            self.count = count

        def __len__(self) -> int:
            return self.count

        def __getitem__(self, index: Any) -> Any:
            raise AssertionError("no row is read for the order")

        def lengths_at(self, places: np.ndarray) -> np.ndarray:
            return 20 + (places * 2654435761 >> 7) % 500

    def peak(count: int) -> int:
        examples = Lengths(count)
        mixed = Mixed(examples, [count], [Entry(("",), epochs=1)], 3)
        order = blocks.BlockedOrder(
            examples,
            mixed.streams,
            mixed.due,
            seed=3,
            rows_per_step=16,
            capacity=None,
            by_length=True,
        )
        tracemalloc.start()
        rows = order.count(0)
        for first in range(0, rows, rows // 20):
            assert order.rows(0, first, first + 16)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return held

    assert peak(16_000_000) < 1.2 * peak(4_000_000)
