"""`strategy: auto` on a CPU as a table: the same numbers always give the same choice, and a reason that names them."""

from __future__ import annotations

import pytest

from ai_finetuning.errors import ConfigError
from ai_finetuning.planner.auto import Situation, advise_strategy
from ai_finetuning.planner.memory import MemoryEstimate

GIB = 2**30


def situation(
    devices: int, each: float, *, weights: float, states: float = 1, activations: float = 1, **more
) -> Situation:
    estimate = MemoryEstimate(int(weights * GIB), int(states * GIB), int(activations * GIB), GIB // 2, GIB // 2)
    return Situation([int(each * GIB)] * devices, estimate, gathered=GIB // 2, **more)


@pytest.mark.parametrize(
    ("given", "strategy", "processes"),
    [
        (situation(1, 24, weights=4), "ddp", 1),
        (situation(1, 24, weights=400), "ddp", 1),  # one device: the run's own warning and memory errors speak
        (situation(2, 24, weights=20), "ddp", 2),
        (situation(8, 24, weights=20), "ddp", 8),
        (situation(2, 24, weights=14, states=28), "fsdp", 2),
        (situation(8, 24, weights=40, states=80), "fsdp", 8),
        (situation(2, 24, weights=26), "fsdp", 2),
    ],
)
def test_the_first_strategy_that_fits_is_taken(given: Situation, strategy: str, processes: int):
    choice = advise_strategy(given)
    assert (choice.strategy, choice.processes) == (strategy, processes)
    assert "\n" not in choice.reason_ja + choice.reason_en
    if len(given.devices) > 1:
        for reason in (choice.reason_ja, choice.reason_en):
            assert f"{given.whole.total / GIB:.1f} GiB" in reason
            assert str(len(given.devices)) in reason


def test_the_smallest_device_decides():
    estimate = MemoryEstimate(14 * GIB, GIB, GIB, GIB, GIB)
    assert advise_strategy(Situation([24 * GIB, 24 * GIB], estimate, GIB)).strategy == "ddp"
    assert advise_strategy(Situation([24 * GIB, 16 * GIB], estimate, GIB)).strategy == "fsdp"


@pytest.mark.parametrize("more", [{}, {"shardable": False}])
def test_what_fits_in_no_way_is_refused_with_the_numbers(more: dict):
    with pytest.raises(ConfigError, match="73.0 GiB|qlora") as refusal:
        advise_strategy(situation(2, 24, weights=70, **more))
    assert "73.0" in refusal.value.ja
    assert "38.0" in refusal.value.en
    assert "24.0" in refusal.value.en
