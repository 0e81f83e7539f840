"""Pairs and marked answers on several processes, by every strategy, against one process: loss, gradients and metrics."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.parity import CPU, Case, Outcome, compare, model_of, updated
from tests.support.ranks import run_ranks
from tests.unit.engine.test_preference_loss import loader_of, loss_of, marked, pairs

from ai_finetuning.config.preference import PreferenceConfig
from ai_finetuning.data.answers import AnswerRows, Mismatched
from ai_finetuning.data.loader import evaluation_batches
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.engine.preference_loss import score_answers
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.plugins.accelerated import AcceleratedReplicas
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.pipeline import Pipeline
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.strategies.tensor import parallelize_layers

CASES = [
    # (architecture, method, rows, loss, whether answers share their beginning)
    ("llama", "lora", 5, PreferenceConfig("sigmoid"), True),
    ("qwen3_tied", "full", 3, PreferenceConfig("sigmoid", sft_weight=1.0), True),
    ("llama", "full", 1, PreferenceConfig("orpo"), False),  # fewer pairs than ranks
    ("llama", "lora", 3, PreferenceConfig("kto"), True),
]


@dataclass
class Told:
    """What a process answers: its part of the step, the metrics, an evaluation, and the log-probabilities of all rows."""

    outcome: Outcome
    metrics: dict[str, float]
    evaluation: tuple[float, int]
    scores: Any


def take(case: tuple[Any, ...], strategy: Any) -> Told:
    kind, method, count, settings, shared = case
    model = model_of(Case(kind, method))
    inner = model if method == "full" else model.get_base_model()
    path, reason = select_forward_path(inner, CPU, autocast=None, kernels="portable")
    assert path is not None, reason
    examples = marked(count) if settings.loss == "kto" else pairs(count)
    reference = torch.randn(count, 2, 2, generator=torch.Generator().manual_seed(3)) - 50
    rows = AnswerRows(shared, reference, Mismatched(examples, 0, 64) if settings.loss == "kto" else None)
    loss = loss_of(path, settings)
    strategy.prepare(model, loss)
    trained = [(name, p) for name, p in strategy.named_parameters(model) if p.requires_grad]
    strategy.attach(build_optimizer(trained, learning_rate=2e-5))
    batches = evaluation_batches(examples, batch_size=2, pad_token_id=0, answers=rows)
    scores = score_answers(strategy, loss, batches)
    if loss.has_rest:
        others = evaluation_batches(examples, batch_size=2, pad_token_id=0, answers=rows, other=True)
        loss.find_rest(strategy, lambda: strategy.evaluate(others))
    evaluation = strategy.evaluate(batches)
    loader = loader_of(examples, rows, (strategy.data_rank, strategy.data_size))
    group = loader.micro_batches(0, 0, 2)
    loss.begin()
    if loss.has_rest:
        loss.find_rest(strategy, lambda: strategy.score(loader.other_answers(0, 0, 2)))
    (units,), _ = strategy.agree([sum(batch.num_units for batch in group)])
    assert units == count
    total = strategy.forward_backward(group, units)
    before = strategy.exchanges
    outcome = updated(strategy, trained, total, loss.sums(total.device))
    assert strategy.exchanges - before <= 1  # metrics go with the loss and the norm, in no message of their own
    return Told(outcome, loss.metrics(outcome.also), evaluation, scores)


def _rank(rank: int, build: Callable[[], Any], cases: list[tuple[Any, ...]]) -> list[Told]:
    told = []
    for case in cases:
        strategy = build()
        told.append(take(case, strategy))
        strategy.close()
    return told


def cut(model: Any, mesh: Any, weight_placement: Any) -> None:
    parallelize_layers(model, mesh, plan=tensor_plan(model), weight_placement=weight_placement)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "ddp": lambda: DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu")),
    "fsdp": lambda: DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=True),
    "tensor": lambda: DataParallel(CPU, build_mesh(Sizes(tp=2), "cpu"), parallelize_layers=cut),
    "pipeline": lambda: Pipeline(CPU, build_mesh(Sizes(pp=2), "cpu"), schedule="1F1B"),
    "accelerated": lambda: AcceleratedReplicas(CPU, build_mesh(Sizes(dp=2), "cpu")),
}


QUICK = {"ddp": CASES[2:], "fsdp": CASES[1:2], "tensor": CASES[:1], "pipeline": [CASES[0], CASES[3]]}


@pytest.mark.parametrize("name", QUICK)
def test_two_ranks_do_the_step_of_one(name: str, tmp_path: Path):
    check(name, QUICK[name], tmp_path)


THREE: dict[str, Callable[[], Any]] = {
    "ddp": lambda: DataParallel(CPU, build_mesh(Sizes(dp=3), "cpu")),
    "fsdp": lambda: DataParallel(CPU, build_mesh(Sizes(dp=3), "cpu"), sharded=True),
}
UNEVEN = [
    # The ranks have 3, 2 and 2 rows in micro-batches of two: one has none left where another has its last.
    ("llama", "lora", 7, PreferenceConfig("sigmoid", sft_weight=1.0), True),
    ("llama", "full", 4, PreferenceConfig("sigmoid"), False),
    ("llama", "lora", 7, PreferenceConfig("kto"), True),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", THREE)
def test_three_ranks_with_an_odd_rest_do_the_step_of_one(name: str, tmp_path: Path):
    check(name, UNEVEN, tmp_path, (3, THREE[name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_loss_on_two_ranks(name: str, tmp_path: Path):
    check(name, CASES, tmp_path)


def check(
    name: str, cases: list[tuple[Any, ...]], folder: Path, ranks: tuple[int, Callable[[], Any]] | None = None
) -> None:
    world, build = ranks or (2, STRATEGIES[name])
    assert build_model("llama") is not None  # transformers is loaded before processes are forked
    answers = run_ranks(world, _rank, build, cases, folder=folder)
    for number, case in enumerate(cases):
        expected, got = take(case, SingleDevice(CPU)), [rank[number] for rank in answers]
        worst = compare(expected.outcome, [told.outcome for told in got])
        assert worst["loss"] < 5e-6, (case, worst)
        assert worst["norm"] < 1e-5, (case, worst)
        assert worst["gradient"] < 2e-5, (case, worst)
        assert worst["covered"] == 1.0, (case, worst)
        for told in got:
            assert told.metrics == pytest.approx(expected.metrics, rel=1e-4, abs=1e-5), case
            assert told.evaluation[1] == expected.evaluation[1]
            assert told.evaluation[0] == pytest.approx(expected.evaluation[0], rel=1e-5)
            assert told.scores == pytest.approx(expected.scores, rel=1e-5, abs=1e-4)
