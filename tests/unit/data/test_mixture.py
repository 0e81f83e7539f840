"""Rows of an earlier training among new ones: their share, their order, and that nothing else depends on them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from ai_finetuning.data.example import Example
from ai_finetuning.data.examples import learnt_of
from ai_finetuning.data.loader import Loader
from ai_finetuning.data.mixture import Mixture
from ai_finetuning.labels import IGNORED


def learnt_tokens(row) -> int:
    return int(learnt_of([row])[0])


def rows(count: int, first: int, seed: int, longest: int = 40) -> list[Example]:
    """Rows of random lengths; the second token of a row is its number, the rest has labels."""
    generator = np.random.default_rng(seed)
    obtained = []
    for number in range(count):
        length = int(generator.integers(4, longest))
        ids = np.full(length, 7, dtype=np.int32)
        ids[1] = first + number
        labels = ids.copy()
        labels[: int(generator.integers(1, length - 1))] = IGNORED
        obtained.append(Example(ids, labels, 1, f"row {first + number}"))
    return obtained


NEW, OLD = rows(400, 0, 1), rows(60, 10_000, 2)


def loader(mixture: Mixture, *, packing: bool = False, group: bool = True, share: tuple[int, int] = (0, 1)) -> Loader:
    return Loader(
        mixture,
        rows_per_step=8,
        seed=3,
        packing=packing,
        max_length=64,
        group_by_length=group,
        pad_token_id=0,
        share=share,
    )


def order(data: Loader, epochs: int, packed: bool = False) -> list[list[Example]]:
    """The documents of every row of the run, in order."""
    known = {int(item.input_ids[1]): item for item in [*NEW, *OLD]}
    obtained = []
    for epoch in range(epochs):
        for index in range(data.steps(epoch)):
            for batch in data.micro_batches(epoch, index, 3):
                for ids, lengths in zip(batch.input_ids.tolist(), batch.lengths, strict=True):
                    starts = np.cumsum([0, *lengths[:-1]])
                    obtained.append([known[ids[start + 1]] for start in starts])
    return obtained


def is_old(item: Example) -> bool:
    return int(item.input_ids[1]) >= 10_000


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.9])
def test_any_stretch_of_the_run_has_the_share_within_one_row(share: float, packing: bool):
    """Also across the ends of epochs, with rows of similar length beside each other."""
    run = order(loader(Mixture(NEW, OLD, share, seed=3), packing=packing), 3)
    old = np.cumsum([0] + [sum(learnt_tokens(item) for item in row if is_old(item)) for row in run])
    every = np.cumsum([0] + [sum(map(learnt_tokens, row)) for row in run])
    largest = max(sum(map(learnt_tokens, row)) for row in run)
    off = old - share * every
    for window in {1, 50, min(1000, len(run)), len(run)}:
        stretch = off[window:] - off[:-window]
        assert abs(stretch).max() <= largest
    assert old[-1] / every[-1] == pytest.approx(share, abs=largest / every[-1])


@pytest.mark.parametrize("packing", [False, True])
def test_every_new_row_comes_once_an_epoch_and_old_rows_in_turn(packing: bool):
    data = loader(Mixture(NEW, OLD, 0.1, seed=3), packing=packing)
    epochs, before = [], 0
    for epoch in range(3):
        run = [item for row in order(data, epoch + 1) for item in row]
        epochs.append(Counter(int(item.input_ids[1]) for item in run[before:]))
        before = len(run)
    for counted in epochs:
        assert all(counted[int(item.input_ids[1])] == 1 for item in NEW)
    total = sum(epochs, Counter())
    assert {total[int(item.input_ids[1])] for item in OLD} in ({2, 3}, {2}, {3})  # no old row is passed over
    assert set(epochs[0]) != set(epochs[1])


def test_it_is_a_function_of_the_seed_and_the_same_for_any_number_of_ranks():
    one = loader(Mixture(NEW, OLD, 0.1, seed=3))
    again = loader(Mixture(NEW, OLD, 0.1, seed=3))
    ranks = [loader(Mixture(NEW, OLD, 0.1, seed=3), share=(rank, 2)) for rank in range(2)]
    for epoch, index in ((2, 5), (0, 0), (1, one.steps(1) - 1)):  # no order of asking

        def ids(data: Loader, epoch: int = epoch, index: int = index) -> list[int]:
            batches = data.micro_batches(epoch, index, 8)
            return [int(row[1]) for batch in batches if batch.num_tokens for row in batch.input_ids]

        assert ids(one) == ids(again)
        assert sorted(ids(one)) == sorted(ids(ranks[0]) + ids(ranks[1]))
    other = Mixture(NEW, OLD, 0.1, seed=4).documents(0)
    assert list(other) != list(Mixture(NEW, OLD, 0.1, seed=3).documents(0))


def test_few_old_rows_are_repeated_in_whole_passes():
    mixture = Mixture(NEW, OLD[:5], 0.2, seed=3)
    taken = mixture.taken(1)
    counted = Counter(int(place) for place in mixture.documents(0)[len(NEW) :])
    assert sum(counted.values()) == taken.rows
    assert taken.passes == taken.rows / 5 > 1
    assert max(counted.values()) - min(counted.values()) <= 1
    assert taken.share == pytest.approx(0.2, abs=0.005)


def test_what_is_told_of_the_run_is_what_it_takes():
    mixture = Mixture(NEW, OLD, 0.1, seed=3)
    run = [item for row in order(loader(mixture), 3) for item in row if is_old(item)]
    taken = mixture.taken(3)
    assert (taken.rows, taken.tokens, taken.label_tokens) == (
        len(run),
        sum(map(len, run)),
        sum(map(learnt_tokens, run)),
    )


def test_without_replay_the_order_is_as_it_was():
    """The order of runs that exist."""
    data = Loader(NEW, rows_per_step=8, seed=3, packing=False, max_length=64, group_by_length=False, pad_token_id=0)
    expected = np.random.Generator(np.random.Philox(key=[3, 1])).permutation(len(NEW))[8:16]
    obtained = [int(row[1]) for batch in data.micro_batches(1, 1, 8) for row in batch.input_ids]
    assert obtained == expected.tolist()
    assert [data.steps(epoch) for epoch in range(2)] == [len(data)] * 2
    assert data.steps_of(3) == 3 * len(data)


def test_the_steps_of_an_epoch_are_counted_once(monkeypatch: pytest.MonkeyPatch):
    """The loop asks for them in every step; to choose the rows anew each time would cost as much as an epoch's order."""
    asked: list[int] = []
    choose = Mixture.documents

    def counted(mixture: Mixture, epoch: int) -> np.ndarray:
        asked.append(epoch)
        return choose(mixture, epoch)

    monkeypatch.setattr(Mixture, "documents", counted)
    data = loader(Mixture(NEW, OLD, 0.25, seed=1))
    assert len({data.steps(0) for _ in range(100)}) == 1
    assert asked == [0]
