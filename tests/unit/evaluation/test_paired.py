"""Statistics of two models on the same items: by hand, and over simulated runs of a model against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ai_finetuning.evaluation.paired import (
    Kept,
    above_chance,
    bootstrap_interval,
    compare_scores,
    group_means,
    holm,
    items_for,
    least_difference,
    least_mean_difference,
    mcnemar_mid_p,
    non_inferior,
    sign_flip_p,
)


@pytest.mark.parametrize(
    ("gained", "lost", "expected"),
    [
        # By hand: 2 * sum(choose(n, k) / 2^n for k <= few) - choose(n, few) / 2^n.
        (3, 0, 2 / 8 - 1 / 8),
        (0, 5, 2 / 32 - 1 / 32),
        (5, 1, 2 * (1 + 6) / 64 - 6 / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024 - 45 / 1024),
        (4, 4, 1.0),
        (0, 0, 1.0),
    ],
)
def test_mcnemar_as_by_hand(gained: int, lost: int, expected: float):
    assert mcnemar_mid_p(gained, lost) == pytest.approx(expected, rel=1e-9)
    assert mcnemar_mid_p(lost, gained) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_items_stays_a_number():
    assert mcnemar_mid_p(298, 0) == pytest.approx(2.0**-298, rel=1e-6)
    assert 0.9 < mcnemar_mid_p(50_000, 49_990) <= 1


def test_sign_flips_approach_the_exact_value():
    # All 16 signs of (1, 2, 3, 4): the sum reaches 10 for all plus or all minus: 2 / 16; of (1, 2, 3, -4) |2| : 14 / 16.
    assert sign_flip_p([1, 2, 3, 4]) == pytest.approx(2 / 16, abs=0.01)
    exact = (
        sum(
            abs(sum(v if bit else -v for bit, v in zip(bits, (1, 2, 3, 4), strict=True))) >= 2
            for bits in np.ndindex(2, 2, 2, 2)
        )
        / 16
    )
    assert sign_flip_p([1, 2, 3, -4]) == pytest.approx(exact, abs=0.01)
    assert sign_flip_p([0, 0, 0]) == 1.0
    assert sign_flip_p([]) == 1.0
    assert sign_flip_p([1.0] * 50) == pytest.approx(1 / 20_001)
    assert sign_flip_p([0.3, -0.1, 0.2]) == sign_flip_p([0.3, -0.1, 0.2])


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(1).normal(0.3, 1.0, 400)
    low, high = bootstrap_interval(values.tolist())
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_interval([0.0] * 7) == (0.0, 0.0)


def test_works_are_resampled_not_their_passages():
    before, works = [0.0] * 6, ["a", "a", "b", "b", "c", "c"]
    after = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert group_means(after, works) == [1.0, 0.0, 0.0]
    compared = compare_scores(before, after, groups=works)
    assert compared.count == 3
    assert compared.after == pytest.approx(1 / 3)
    assert compared.interval[0] == 0
    assert compared.interval[1] >= 2 / 3


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == pytest.approx({"a": 1.0, "b": 1.0})
    assert holm({}) == {}


# 80 % power, two-sided 5 %; Monte-Carlo below for some of them.
TABLE = {
    0.1: (0.12, 0.088, 0.064, 0.041, 0.027, 0.018),
    0.2: (0.176, 0.128, 0.091, 0.057, 0.038, 0.026),
    0.3: (0.219, 0.159, 0.111, 0.070, 0.047, 0.031),
}
SIZES = (50, 100, 200, 500, 1119, 2434)


@pytest.mark.parametrize("discordant", TABLE)
def test_the_least_difference_that_can_be_seen(discordant: float):
    for count, expected in zip(SIZES, TABLE[discordant], strict=True):
        found = least_difference(count, discordant)
        assert found == pytest.approx(expected, abs=0.0075), (count, discordant)
    assert least_mean_difference(100, 1.68) == pytest.approx(0.47, abs=0.005)
    assert items_for(least_difference(500, discordant), discordant) == pytest.approx(500, abs=2)


def test_no_difference_is_seen_with_fewer_items_than_the_exact_test_needs():
    assert mcnemar_mid_p(5, 0) <= 0.05 < mcnemar_mid_p(4, 0)
    assert items_for(1.0) == 5  # five that differ, all in one direction
    assert items_for(0.5) >= 10
    assert least_difference(4) > 1
    assert least_difference(6) == pytest.approx(5 / 6)
    assert least_difference(10) == pytest.approx(0.5)


def test_the_power_is_what_is_said():
    generator = np.random.default_rng(0)
    count, discordant = 200, 0.2
    difference = least_difference(count, discordant)
    gain = (discordant + difference) / 2
    draws = generator.multinomial(count, [gain, discordant - gain, 1 - discordant], size=2000)
    power = np.mean([mcnemar_mid_p(int(up), int(down)) < 0.05 for up, down, _ in draws])
    assert power == pytest.approx(0.8, abs=0.04)


def test_chance_is_a_binomial_tail():
    # P(X >= 9 | 20, 0.2) = 0.00998, P(X >= 7) = 0.0867
    assert above_chance(9, 20, 0.2)
    assert not above_chance(7, 20, 0.2)
    assert not above_chance(89, 400, 0.2)  # 22.3 % of 400 with five choices
    assert above_chance(100, 400, 0.2)
    assert not above_chance(400, 400, 1.0)
    assert not above_chance(0, 0, 0.2)


def test_no_evidence_of_a_loss_is_not_evidence_of_no_loss():
    few = compare_scores([1, 1, 1, 0, 0] * 4, [1, 1, 0, 1, 0] * 4)
    assert few.difference == 0
    assert few.p == 1
    kept = non_inferior(few, 0.03)
    assert kept.state == "unclear"
    assert kept.needed is not None
    assert kept.needed > 20
    many = compare_scores([1, 1, 1, 1, 1, 1, 1, 1, 1, 0] * 200, [1, 1, 1, 1, 1, 1, 1, 1, 0, 1] * 200)
    assert non_inferior(many, 0.03).state == "kept"
    assert non_inferior(compare_scores([1.0] * 50, [1.0] * 50), 0.03).state == "kept"


def test_a_loss_beyond_the_margin_and_one_that_no_number_would_clear():
    worse = compare_scores([3.74 + 0.001 * i for i in range(48)], [5.5 + 0.002 * i for i in range(48)], lower=True)
    assert worse.difference > 1.7
    assert worse.interval[1] < 0
    assert worse.p == pytest.approx(5e-5, rel=0.01)
    assert non_inferior(worse, 0.05).state == "lost"
    generator = np.random.default_rng(3)
    noise = (0.06 + generator.normal(0, 0.2, 30)).tolist()
    unclear = non_inferior(compare_scores([0.0] * 30, noise, lower=True), 0.05)
    assert unclear.state == "unclear"


@pytest.mark.parametrize("count", [1, 2, 4, 6])
def test_of_few_works_nothing_is_called_kept(count: int):
    better = compare_scores([3.7] * count, [3.69] * count, lower=True)
    assert better.interval[0] > 0
    assert non_inferior(better, 0.05) == Kept("unclear", 10)
    assert non_inferior(compare_scores([3.7] * 10, [3.69] * 10, lower=True), 0.05).state == "kept"


def test_of_few_works_a_loss_is_one_only_where_it_is_significant():
    for count, state in ((1, "unclear"), (5, "unclear"), (6, "lost"), (10, "lost")):
        worse = compare_scores([3.7] * count, [4.7 + place / 100 for place in range(count)], lower=True)
        assert non_inferior(worse, 0.05).state == state, count
    assert non_inferior(compare_scores([3.7], [4.7], lower=True), 0.05).needed == 10


def test_one_right_answer_must_not_be_more_than_the_margin():
    for count, margin, state in ((33, 0.03, "unclear"), (34, 0.03, "kept"), (50, 0.02, "kept"), (10, 0.2, "kept")):
        same = compare_scores([1.0] * count, [1.0] * count)
        kept = non_inferior(same, margin, share=True)
        assert kept.state == state, (count, margin)
        assert kept.needed == (34 if state == "unclear" else None)


def test_unequal_lengths_are_no_pairs():
    with pytest.raises(ValueError, match="2 scores"):
        compare_scores([1, 0], [1])


def improvements(runs: int, seed: int) -> float:
    """Share of simulated runs in which a model that is as good as before improves on any of its tasks: three of 0 and 1
    (few items, many items, seldom discordant), one of continuous scores.
    """
    generator = np.random.default_rng(seed)
    hits = 0
    for _ in range(runs):
        p_values, gains = {}, {}
        for name, count, discordant in (("a", 60, 0.2), ("b", 300, 0.3), ("c", 800, 0.1)):
            up, down, _ = generator.multinomial(count, [discordant / 2, discordant / 2, 1 - discordant])
            p_values[name], gains[name] = mcnemar_mid_p(int(up), int(down)), up - down
        scores = generator.normal(0, 0.15, 100)
        p_values["d"], gains["d"] = sign_flip_p(scores.tolist(), draws=999), scores.mean()
        adjusted = holm(p_values)
        hits += any(adjusted[name] < 0.05 and gains[name] > 0 for name in adjusted)
    return hits / runs


def test_a_model_as_good_as_before_seldom_improves():
    assert improvements(300, seed=5) <= 0.05


@pytest.mark.slow
def test_false_alarms_over_all_tasks_together():
    """2,000 runs: at most 5 % with any task improved or worse; improved alone is half of that."""
    rate = improvements(2000, seed=11)
    assert rate <= 0.05, rate
    assert math.isfinite(rate)
