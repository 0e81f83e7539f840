"""Trying a faster way to compute before it is taken."""

from __future__ import annotations

import torch

from ai_finetuning.kernels.checked import why_not_taken, worst_difference

ONE = torch.ones(4)


def test_the_largest_difference_of_all_pairs_counts():
    assert abs(worst_difference([(ONE, ONE), (1.1 * ONE, ONE), (1.01 * ONE, ONE)]) - 0.1) < 1e-6
    assert why_not_taken(lambda: [(1.1 * ONE, ONE)], 0.2) is None


def test_what_is_not_a_number_is_never_taken_wherever_it_stands():
    nan = (ONE * float("nan"), ONE)
    for pairs in ([nan, (ONE, ONE)], [(ONE, ONE), nan]):
        reason = why_not_taken(lambda pairs=pairs: pairs, 0.2)
        assert reason is not None
        assert "differ" in reason.en


def test_a_way_that_fails_says_how():
    def fails():
        raise ValueError("no such product")

    reason = why_not_taken(fails, 0.2)
    assert reason is not None
    assert reason.en == "ValueError: no such product"
