"""The checks of `aift gpu self-check`, one test each, so that the command and `make test-gpu` cannot differ."""

from __future__ import annotations

import pytest
import torch

from ai_finetuning.execution.self_check import parity, predicted, several, short_memory, speed, steps
from ai_finetuning.execution.self_check.results import Check, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)


def must_not_fail(check: Check) -> None:
    result = run(check)
    if result.status == "not run":
        pytest.skip(f"{result.name}: {result.note.en if result.note else ''}")
    assert result.status == "passed", result


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> steps.Bench:
    return steps.Bench(tmp_path_factory.mktemp("bench"), GPU)


# Without a GPU the lists are those of the CPU: pytest collects them everywhere.
_DEVICE = GPU if torch.cuda.is_available() else torch.device("cpu")


@pytest.mark.parametrize("check", parity.checks(_DEVICE), ids=lambda check: check.name)
def test_kernels(check: Check):
    must_not_fail(check)


@pytest.mark.parametrize("name", [f"steps/{family}/{method}" for family in steps.FAMILIES for method in steps.METHODS])
def test_whole_steps(name: str, bench: steps.Bench):
    for check in steps.checks(bench):
        if check.name.startswith(f"{name}/"):
            must_not_fail(check)


def test_a_stop_and_memory_that_runs_out(bench: steps.Bench):
    for check in [*steps.checks(bench), *short_memory.checks(bench)]:
        if check.group in ("resume", "out_of_memory"):
            must_not_fail(check)


def test_strategies(bench: steps.Bench):
    for check in several.checks(bench):
        must_not_fail(check)


@pytest.mark.parametrize("check", predicted.checks(GPU), ids=lambda check: check.name)
def test_memory_is_near_its_prediction(check: Check):
    must_not_fail(check)


def test_speed_is_below_what_the_table_says_and_not_far():
    from ai_finetuning.planner.gpus import card_named

    card = card_named(torch.cuda.get_device_name(GPU))
    if card is None:
        pytest.skip("the table of GPUs has no row for this one")
    measured = speed.products(GPU)
    for name, kind in (("float16", "fp16"), ("bfloat16", "bf16")):
        if name in measured:
            assert 0.3 * card.tflops[kind] < measured[name] < 1.1 * card.tflops[kind]
    assert 0.4 * card.bandwidth < speed.copies(GPU)["memory"] < 1.1 * card.bandwidth
