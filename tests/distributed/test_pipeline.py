"""Pipelines on two and four processes against one fp32 process, and the faults that train wrongly without an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.distributed.test_data_parallel import CASES, assert_equal
from tests.support.parity import CPU, Case, differences, loader, loss_of, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.pipeline import SCHEDULES, Pipeline
from ai_finetuning.parallel.strategies.single import SingleDevice

# One of each architecture, method and kind of data, in pairs that differ.
COVER = [
    Case("llama", "full", "padded"),
    Case("stablelm", "lora", "packed"),
    Case("gpt_neox", "full", "documents"),
    Case("qwen3_tied", "full", "packed"),
    Case("gemma2", "full", "documents"),
    Case("gemma2", "lora", "padded"),
    # Positions added on every stage were off by 0.57-0.80 (docs/design/distributed.md, fault 5).
    Case("gpt2", "full", "padded"),
    # One micro-batch for two stages: the other one is empty.
    Case("qwen3_tied", "full", "documents", rows=1),
    Case("llama", "qlora", "documents"),
]
# Two stages a process: what else may differ by schedule is ties (both ends on one process in a V), custom backward
# functions that are called twice (documents), and numbers of micro-batches.
OTHERS = {
    "GPipe": [Case("qwen3_tied", "full", "documents"), Case("gpt2", "lora", "packed")],
    "Interleaved1F1B": [Case("gemma2", "full", "packed", layers=4), Case("llama", "lora", "padded", rows=9, layers=5)],
    "InterleavedZeroBubble": [Case("qwen3_tied", "full", "documents", layers=4)],
    "ZBV": [Case("gemma2", "full", "documents", layers=4), Case("stablelm", "lora", "documents", rows=1, layers=4)],
}


def pipeline(schedule: str = "1F1B", *, dp: int = 1, sharded: bool = False) -> Any:
    return lambda case: Pipeline(CPU, build_mesh(Sizes(pp=2, dp=dp), "cpu"), schedule=schedule, sharded=sharded)


def test_two_stages_do_the_step_of_one_process(tmp_path: Path):
    assert_equal(differences(2, COVER, pipeline(), tmp_path))


@pytest.mark.parametrize("schedule", OTHERS)
def test_every_schedule_does_the_step_of_one_process(schedule: str, tmp_path: Path):
    cases = [Case("llama", "full", "padded", layers=4), *OTHERS[schedule]]
    assert_equal(differences(2, cases, pipeline(schedule), tmp_path))


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_stages_of_two_data_ranks(sharded: bool, tmp_path: Path):
    cases = [Case("qwen3_tied", "full", "packed"), Case("llama", "lora", "documents")]
    assert_equal(differences(4, cases, pipeline(dp=2, sharded=sharded), tmp_path))


@pytest.mark.slow
def test_the_whole_product(tmp_path: Path):
    assert_equal(differences(2, CASES, pipeline(), tmp_path, limit=600))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", OTHERS)
def test_the_cover_by_every_schedule(schedule: str, tmp_path: Path):
    each = SCHEDULES[schedule].stages
    cases = [Case(c.kind, c.method, c.data, c.rows, layers=2 * each) for c in COVER]
    if SCHEDULES[schedule].splits_backward:
        cases = [case for case in cases if case.kind != "gpt2"]
    assert_equal(differences(2, cases, pipeline(schedule), tmp_path, limit=600))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "sharded"),
    [("1F1B", False), ("1F1B", True), ("Interleaved1F1B", False), ("Interleaved1F1B", True), ("ZBV", False)],
)
def test_the_cover_on_four_processes(schedule: str, sharded: bool, tmp_path: Path):
    each = SCHEDULES[schedule].stages
    cases = [
        Case(c.kind, c.method, c.data, c.rows, layers=2 * each)
        for c in COVER
        if c.method != "qlora" and c.kind != "gpt2"
    ]
    assert_equal(differences(4, cases, pipeline(schedule, dp=2, sharded=sharded), tmp_path, limit=600))


# (rows, micro-batch size) of three steps: numbers and lengths of micro-batches change, and are fewer than the stages.
LIFE = ((11, 2), (5, 1), (3, 3))


def live(strategy: Any, case: Case) -> dict[str, Any]:
    """Three steps with gradient checkpointing, scored after each."""
    model = model_of(case)
    enable_activation_checkpointing(model)
    model.train()
    strategy.prepare(model, loss_of(case, model))
    trained = strategy.named_parameters(model)
    strategy.attach(build_optimizer(trained, learning_rate=1e-3))
    seen = []
    for rows, size in LIFE:
        group = loader(Case(case.kind, case.method, case.data, rows)).micro_batches(0, 0, size)
        (labels,), _ = strategy.agree([sum(batch.num_label_tokens for batch in group)])
        update = strategy.update(strategy.forward_backward(group, labels), 0.0)
        for _, parameter in trained:
            parameter.grad = None
        total, tokens = strategy.evaluate(group)
        assert model.training
        seen.append((update.loss, update.grad_norm, total / tokens))
    strategy.close()
    weights = {name: p.detach().numpy() for name, p in trained}
    return {"seen": seen, "weights": weights, "held": sum(p.numel() for p in model.parameters())}


def _rank(rank: int, cases: Sequence[tuple[str, Case]]) -> list[dict[str, Any]]:
    return [live(pipeline(schedule)(case), case) for schedule, case in cases]


def test_steps_of_changing_shape_scores_and_equal_ties(tmp_path: Path):
    cases = [
        ("1F1B", Case("qwen3_tied", "full", "documents")),
        ("ZBV", Case("qwen3_tied", "full", "padded", layers=4)),
        ("Interleaved1F1B", Case("gemma2", "lora", "packed", layers=4)),
    ]
    answers = run_ranks(2, _rank, cases, folder=tmp_path)
    for index, (schedule, case) in enumerate(cases):
        expected = live(SingleDevice(CPU), case)
        for got in (rank[index] for rank in answers):
            np.testing.assert_allclose(got["seen"], expected["seen"], rtol=2e-5, err_msg=f"{schedule} {case}")
            assert got["held"] < expected["held"], "a process holds what it does not run"
            assert set(got["weights"]) <= set(expected["weights"]), "names are not those of the whole model"
    first, last = (rank[0]["weights"]["model.embed_tokens.weight"] for rank in answers)
    assert np.array_equal(first, last), "the copies of a tied weight drift apart"


def fused_step(strategy: Any) -> tuple[float, float]:
    """Loss and norm of a step with the fused bf16 blocks."""
    model = model_of(Case("llama", layers=4))
    path, reason = select_forward_path(model, CPU, autocast=torch.bfloat16, kernels="fused")
    assert path is not None, reason
    if path.name != "fused":
        pytest.skip(reason)
    strategy.prepare(model, make_document_loss(path))
    strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
    group = loader(Case("llama", data="documents")).micro_batches(0, 0, 2)
    loss = strategy.forward_backward(group, sum(batch.num_label_tokens for batch in group))
    update = strategy.update(loss, 0.0)
    strategy.close()
    path.close()
    return update.loss, update.grad_norm


def _fused_rank(rank: int, schedules: Sequence[str]) -> list[tuple[float, float]]:
    mesh = build_mesh(Sizes(pp=2), "cpu")
    return [fused_step(Pipeline(CPU, mesh, schedule=name, autocast=torch.bfloat16)) for name in schedules]


def test_fused_blocks_run_in_stages(tmp_path: Path):
    expected = fused_step(SingleDevice(CPU, autocast=torch.bfloat16))
    for rank in run_ranks(2, _fused_rank, ["1F1B", "ZBV"], folder=tmp_path):
        np.testing.assert_allclose(rank, [expected, expected], rtol=1e-5)


def _overflow(rank: int) -> tuple[bool, bool]:
    """fp16's scaler after a gradient that overflowed on the last stage only: (whether it stepped, whether weights
    changed).
    """
    case = Case("llama")
    strategy = Pipeline(CPU, build_mesh(Sizes(pp=2), "cpu"), scaler=True)
    model = model_of(case)
    strategy.prepare(model, loss_of(case, model))
    trained = [parameter for _, parameter in strategy.named_parameters(model)]
    before = [parameter.detach().clone() for parameter in trained]
    strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
    group = loader(case).micro_batches(0, 0, 2)
    loss = strategy.forward_backward(group, sum(batch.num_label_tokens for batch in group))
    if rank == 1:
        trained[0].grad[0] = float("inf")
    updated = strategy.update(loss, 1.0).applied
    return updated, any(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))


def test_an_overflow_on_one_stage_skips_the_step_of_all(tmp_path: Path):
    assert run_ranks(2, _overflow, folder=tmp_path) == [(False, False), (False, False)]
