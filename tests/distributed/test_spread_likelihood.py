"""Likelihoods under every strategy against one process, with adapters and quantized bases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.parity import CPU, Case, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.engine.loss import make_document_loss, make_loss
from ai_finetuning.evaluation.likelihood import Likelihood, Scored, score_scored
from ai_finetuning.evaluation.spread_likelihood import SpreadLikelihoods, why_no_answers
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.parts import unwrapped
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.pipeline import Pipeline
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.strategies.tensor import parallelize_layers
from ai_finetuning.parallel.weights.materialize import WeightPlacement

# The V schedule takes four layers for two processes, whose first one has the last stage.
CASES = [
    Case("llama", "lora", "documents", layers=4),
    Case("gemma2", "full", "padded", layers=4),
    Case("qwen3_tied", "lora", "padded", vocabulary=403, layers=4),
]
QUANTIZED = [Case("llama", "qlora", "documents")]


def items() -> list[Scored]:
    """Texts of different lengths, each behind a prompt; more than two ranks have rows for."""
    generator = torch.Generator().manual_seed(3)
    sizes = ((9, 3), (14, 9), (6, 1), (21, 20), (9, 8), (12, 5), (7, 2))
    return [
        Scored(tuple(torch.randint(3, 400, (size,), generator=generator).tolist()), first, size - first)
        for size, first in sizes
    ]


def scores(case: Case, strategy: Any) -> list[Likelihood]:
    model, found = model_of(case), SpreadLikelihoods(items())
    if case.data == "documents":
        path, reason = select_forward_path(unwrapped(model), CPU, autocast=None, kernels="portable")
        assert path is not None, reason
        loss = make_document_loss(path, found.predictions)
    else:
        loss = make_loss(logits_to_keep=True, predictions=found.predictions)
    strategy.prepare(model, loss)
    obtained = found.score(strategy, batch_size=2, pad_token_id=0)
    strategy.close()
    return obtained


def cut(model: Any, mesh: Any, weight_placement: WeightPlacement) -> None:
    parallelize_layers(model, mesh, plan=tensor_plan(model), weight_placement=weight_placement)


def strategy_of(name: str) -> Any:
    if name == "tensor":
        return DataParallel(
            CPU,
            build_mesh(Sizes(tp=2), "cpu"),
            sharded=False,
            parallelize_layers=cut,
        )
    if name in ("1F1B", "ZBV"):
        return Pipeline(CPU, build_mesh(Sizes(pp=2), "cpu"), schedule=name, sharded=False)
    return DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=name == "fsdp")


def _rank(rank: int, name: str, cases: list[Case]) -> list[list[Likelihood]]:
    return [scores(case, strategy_of(name)) for case in cases]


@pytest.mark.parametrize("name", ["ddp", "fsdp", "tensor", "1F1B", "ZBV"])
def test_every_strategy_finds_the_likelihoods_of_one_process(name: str, tmp_path: Path):
    cases = [*CASES, *(QUANTIZED if name == "1F1B" else [])]
    wanted = [score_scored(model_of(case), items()) for case in cases]  # here first: the ranks inherit what it imports
    ranks = run_ranks(2, _rank, name, cases, folder=tmp_path)
    for place, (case, expected) in enumerate(zip(cases, wanted, strict=True)):
        for obtained in (rank[place] for rank in ranks):
            assert [item.tokens for item in obtained] == [item.tokens for item in expected]
            assert [item.greedy for item in obtained] == [item.greedy for item in expected]
            for mine, theirs in zip(obtained, expected, strict=True):
                assert mine.nats == pytest.approx(theirs.nats, abs=1e-5 * max(1, theirs.tokens)), (str(case), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_quantized_bases_under_other_strategies(name: str, tmp_path: Path):
    (expected,) = [score_scored(model_of(case), items()) for case in QUANTIZED]
    for (obtained,) in run_ranks(2, _rank, name, QUANTIZED, folder=tmp_path):
        assert [item.nats for item in obtained] == pytest.approx([item.nats for item in expected], abs=1e-4)


def test_one_process_and_its_own_way_agree():
    for case in [*CASES, *QUANTIZED]:
        expected = score_scored(model_of(case), items())
        obtained = scores(case, SingleDevice(CPU))
        assert [item.nats for item in obtained] == pytest.approx([item.nats for item in expected], abs=1e-4)


def test_a_model_over_several_devices():
    """Accelerate's hooks, as transformers loads a model with a device map."""
    from accelerate import dispatch_model

    model = build_model("llama")
    expected = score_scored(model, items())
    names = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    dispatched = dispatch_model(model, device_map=names, main_device="cpu", force_hooks=True)
    assert score_scored(dispatched, items()) == expected


def test_where_no_answers_are_written_the_reason_is_said():
    assert why_no_answers("single") is None
    assert why_no_answers("model_parallel") is None
    reason = why_no_answers("fsdp")
    assert reason is not None
    assert reason.ja.startswith("測っていません")
