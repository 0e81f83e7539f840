"""Cuts of a step: what is looked at and in which order, what is taken, and that the rows of a step never change."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from ai_finetuning.planner.cuts import Candidate, Choice, Cut, Freedom, best_of, ladder, looked_at

EVERYTHING = Freedom(rows=True, checkpointing=True)


def candidate(cut: Cut, needed: float, seconds: float | None = 1.0, strategy: str = "ddp") -> Candidate:
    """One of a device of 100 bytes."""
    return Candidate(strategy, 1, cut, int(needed), 100, seconds)


def shown(cuts: list[Cut]) -> list[tuple[int, int, bool]]:
    return [(cut.batch_size, cut.accumulation, cut.checkpointing) for cut in cuts]


def test_the_order_is_that_of_their_cost():
    assert shown(ladder(Cut(4, 4, True), EVERYTHING, 16)) == [
        (4, 4, False),
        (4, 4, True),
        (2, 8, True),
        (1, 16, True),
    ]
    assert shown(ladder(Cut(6, 5, True), EVERYTHING, 30))[1:] == [(6, 5, True), (3, 10, True), (1, 30, True)]
    waits = ladder(Cut(2, 1, False), Freedom(rows=True, offload=("activations",)), 2)
    assert [cut.offload for cut in waits] == ["none", "none", "activations"]
    assert waits[-1].batch_size == 1


@pytest.mark.parametrize(
    "asked", [Cut(4, 4, True), Cut(6, 5, False), Cut(7, 3, True), Cut(1, 16, True), Cut(96, 1, True)]
)
def test_the_rows_of_a_step_stay(asked: Cut):
    cuts = ladder(asked, EVERYTHING, asked.rows)
    wider = asked
    while wider is not None:
        cuts.append(wider)
        wider = wider.wider(asked.rows)
    assert {cut.batch_size * cut.accumulation for cut in cuts} == {asked.rows}
    assert max(cut.batch_size for cut in cuts) <= asked.rows


@pytest.mark.parametrize("free", [Freedom(), Freedom(rows=True), Freedom(checkpointing=True)])
def test_what_was_given_stays(free: Freedom):
    cuts = ladder(Cut(4, 4, False), free, 16)
    assert {cut.batch_size for cut in cuts} == ({4, 2, 1} if free.rows else {4})
    assert {cut.checkpointing for cut in cuts} == ({False, True} if free.checkpointing else {False})


def test_a_micro_batch_has_no_more_rows_than_a_device_gets():
    """Of 16 rows eight devices get two each: micro-batches of four would never be full."""
    assert shown(ladder(Cut(4, 4, True), Freedom(rows=True), 2))[0] == (2, 8, True)
    assert shown(ladder(Cut(4, 4, True), Freedom(), 2)) == [(4, 4, True)]


def test_the_first_that_fits_is_taken_and_grows_while_steps_get_shorter():
    cuts = ladder(Cut(4, 4, True), EVERYTHING, 16)

    def measure(cut: Cut) -> Candidate:
        needed = cut.batch_size * (5 if cut.checkpointing else 30)
        return candidate(cut, needed, 1 + 1 / cut.batch_size)

    taken, every = looked_at(cuts, 16, measure)
    assert shown([taken.cut]) == [(16, 1, True)]  # 80 of 100
    assert len(every) == len({item.cut for item in every})
    taken, _ = looked_at(cuts, 8, measure)
    assert taken.cut.batch_size == 8
    taken, _ = looked_at(cuts, None, measure)
    assert taken.cut.batch_size == 4
    taken, _ = looked_at(cuts, 16, lambda cut: candidate(cut, 1, 2.0))  # no faster: stays as asked
    assert shown([taken.cut]) == [(4, 4, False)]
    taken, _ = looked_at(cuts, 16, lambda cut: candidate(cut, 1, None))  # nothing known of the time
    assert shown([taken.cut]) == [(4, 4, False)]


def test_where_nothing_fits_the_nearest_is_shown():
    cuts = ladder(Cut(4, 4, True), EVERYTHING, 16)
    taken, _ = looked_at(cuts, 16, lambda cut: candidate(cut, 100 + cut.batch_size))
    assert not taken.fits
    assert taken.cut.batch_size == 1


def test_the_cheapest_strategy_that_fits_wins_and_the_first_of_equal_ones():
    cut, small = Cut(4, 4, False), Cut(1, 16, True)

    def found(strategy: str, needed: float, seconds: float | None, how: Cut = cut):
        one = candidate(how, needed, seconds, strategy)
        return one, [one]

    equal = [found("ddp", 90, 2.0), found("fsdp", 50, 2.0), found("model_parallel", 50, 4.0)]
    assert best_of(equal).chosen.strategy == "ddp"
    assert [item.strategy for item in best_of(equal).runners_up()] == ["fsdp", "model_parallel"]
    assert best_of([found("ddp", 90, 3.0, small), *equal[1:]]).chosen.strategy == "fsdp"
    assert best_of([found("ddp", 101, 1.0), *equal[1:]]).chosen.strategy == "fsdp"
    assert best_of([found("ddp", 90, None), found("fsdp", 50, None)]).chosen.strategy == "ddp"
    assert best_of([found("ddp", 300, 1.0), found("fsdp", 150, 2.0)]).chosen.strategy == "fsdp"


def test_no_more_than_three_runners_up_and_every_strategy_before_a_second_of_one():
    cuts = [candidate(cut, 10 * cut.batch_size, 2.0) for cut in ladder(Cut(8, 2, True), EVERYTHING, 16)]
    other = candidate(Cut(8, 2, True), 500, 9.0, "fsdp")
    choice = Choice(cuts[0], (*cuts[1:], other))
    assert len(choice.runners_up()) == 3
    assert choice.runners_up()[0] is other


def test_two_that_the_formula_may_be_wrong_about_are_simulated():
    """It lies up to a third above; what is not cheaper, or needs far more, is not looked at."""
    cut = Cut(4, 4, True)
    chosen = replace(candidate(cut, 60, 2.0), order=1)
    near, far = candidate(Cut(4, 4, False), 130, 1.0), candidate(Cut(4, 4, False), 200, 0.5)
    later, second = replace(candidate(Cut(2, 8, True), 120, 2.0), order=2), candidate(Cut(8, 2, False), 120, 1.5)
    third = candidate(Cut(16, 1, False), 110, 1.8)
    assert Choice(chosen, (far, later, third, second, near)).hopeful() == [near, second]
    assert Choice(chosen, (replace(later, order=0),)).hopeful(), "as fast, and first in the list"
    assert Choice(candidate(cut, 150), (near, third)).hopeful() == [near, third]  # anything that fits will do


def test_a_simulated_size_takes_the_place_of_the_formula():
    one, two = candidate(Cut(4, 4, False), 130, 1.0), candidate(Cut(4, 4, True), 60, 2.0)
    choice = Choice(two, (one,))
    seen = Candidate("ddp", 1, one.cut, 95, 100, 1.0, simulated=True)
    taken = choice.taking(seen)
    assert (taken.chosen, taken.others) == (seen, (two,))
    assert choice.knowing(seen).others == (seen,)
    assert "(simulated)" in seen.text()
    assert seen.fields()["simulated"] is True


def test_lines_and_fields_say_the_same():
    one = Candidate("fsdp", 2, Cut(2, 8, True, "activations"), 3 * 2**30, 2 * 2**30, 12.345)
    assert (
        one.text()
        == "fsdp x 2, batch 2 x 8, checkpointing, offload activations: 3.0 / 2.0 GiB (does not fit), 12.3 s a step"
    )
    fields = one.fields()
    assert (fields["batch_size"], fields["gradient_accumulation_steps"], fields["gradient_checkpointing"]) == (
        2,
        8,
        True,
    )
    assert fields["fits"] is False
    assert math.isclose(fields["seconds_per_step"], 12.345)
