"""Budgets of a training step on a GPU, of the shapes of an 8B Llama: kernels, casts and bytes beside products and attention,
of the passes and of the update; and how often its compiled part is compiled.

Counted on fake tensors (tests/support/step_costs.py), so a GPU is not needed. The stored numbers hold for the versions that
stand with them.
"""

from __future__ import annotations

import json

import pytest
from tests.support.compiled_graphs import graphs
from tests.support.step_costs import (
    BUDGETS,
    PAGE,
    UPDATES,
    VARIANTS,
    VERSIONS,
    as_page,
    launches,
    measured,
    update_costs,
    whole_step,
)

TABLE = json.loads(BUDGETS.read_text(encoding="utf-8"))
# What a step of 32 layers and 4,096 tokens may cost at most, whatever is stored: goals that were reached.
_STEP = {"gigabytes": 350, "kernels": 4000}
GOALS = {"LoRA, Liger": _STEP, "full, Liger": _STEP, "QLoRA, Liger": {"gigabytes": 350}}
as_stored = pytest.mark.skipif(
    TABLE["versions"] != VERSIONS, reason=f"counted for {TABLE['versions']}, here are {VERSIONS}"
)


def assert_within(obtained: dict[str, float], budget: dict[str, float], part: str) -> None:
    for what, most in budget.items():
        assert obtained[what] <= most, (part, what)
        assert obtained[what] >= 0.95 * most - 1, (part, what, "is stored too high")


@as_stored
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_costs_no_more_than_is_stored(variant: str):
    """A number that shrank is to be stored: python -m tests.support.step_costs."""
    obtained = measured(**VARIANTS[variant])
    for part, budget in TABLE[variant].items():
        assert_within(obtained[part], budget, part)


@as_stored
@pytest.mark.parametrize("update", UPDATES)
def test_clip_and_optimizer_cost_no_more_than_is_stored(update: str):
    obtained = update_costs(**UPDATES[update])
    assert_within(obtained, TABLE["update"][update], update)
    if update == "LoRA, adamw":
        below = update_costs(**UPDATES[update], norm=0.5)
        assert below["gigabytes"] < obtained["gigabytes"] - 0.3  # nothing to clip: gradients are not written again


@as_stored
@pytest.mark.parametrize("kind", TABLE["graphs"])
def test_compiled_parts_are_compiled_in_the_first_steps_only(kind: str):
    stored = TABLE["graphs"][kind]
    first, later = graphs(kind)
    assert first <= stored["first rows"] <= 4
    assert later == stored["later"] == 0


@pytest.mark.parametrize(
    ("sizes", "lists", "expected"),
    [([10], 1, 1), ([10] * 110, 1, 1), ([10] * 111, 1, 2), ([65536 * 320], 4, 1), ([65536 * 320 + 1, 5], 4, 2)],
)
def test_kernels_over_lists_are_launched_as_torch_does(sizes: list[int], lists: int, expected: int):
    """Worked out by hand from the loop of multi_tensor_apply."""
    assert launches(sizes, lists) == expected


@pytest.mark.parametrize("variant", GOALS)
def test_the_stored_budgets_keep_the_goals(variant: str):
    for what, most in GOALS[variant].items():
        assert whole_step(TABLE, variant)[what] < most


def test_the_page_shows_what_is_stored():
    assert as_page(TABLE) in PAGE.read_text(encoding="utf-8")
