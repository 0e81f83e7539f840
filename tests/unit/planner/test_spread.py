"""What a device holds under each strategy: the estimate follows the cut, and never adds to what one process needs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.parity import CPU, Case, take_step
from tests.support.ranks import run_ranks
from tests.support.tracked import batch, job

from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan, resolve_parallel_plan
from ai_finetuning.planner import memory
from ai_finetuning.planner.layers import blocks_of
from ai_finetuning.planner.shape import shape_of
from ai_finetuning.planner.simulate import simulate
from ai_finetuning.planner.spread import gathered, on_fullest_device

TWO = {
    "ddp": ParallelPlan("ddp", Sizes(dp=2)),
    "fsdp": ParallelPlan("fsdp", Sizes(dp=2), sharded=True),
    "tensor": ParallelPlan("tensor", Sizes(tp=2)),
    "pipeline": ParallelPlan("pipeline", Sizes(pp=2)),
    "zero2": ParallelPlan("ddp", Sizes(dp=2), zero_stage=2),
}


@cache
def model_of(kind: str) -> Any:
    return build_model(kind, layers=8, hidden_size=128)


def needs(
    plan: ParallelPlan, *, kind: str = "llama", full: bool = True, checkpointing: bool = False, micro_batches: int = 4
) -> memory.MemoryEstimate:
    model = model_of(kind)
    shape = shape_of(model)
    trainable = shape.parameters if full else shape.lora_parameters(16, None)
    work = memory.Workload(trainable, None, frozen_bytes=4, tokens=512, compute_bytes=4, full=full)
    whole = memory.estimate(shape, work, checkpointing=checkpointing)
    blocks = blocks_of(model, work, checkpointing=checkpointing)
    return on_fullest_device(whole, shape, work, blocks, plan, micro_batches)


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied", "gpt_neox"])
@pytest.mark.parametrize("full", [True, False], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["fsdp", "tensor", "pipeline", "zero2"])
def test_a_part_needs_less_than_the_whole(name: str, kind: str, full: bool, checkpointing: bool):
    whole = needs(TWO["ddp"], kind=kind, full=full, checkpointing=checkpointing)
    part = needs(TWO[name], kind=kind, full=full, checkpointing=checkpointing)
    assert whole == needs(ParallelPlan(), kind=kind, full=full, checkpointing=checkpointing)
    assert part.total < whole.total
    assert part.weights + part.gradients_and_optimizer >= (whole.weights + whole.gradients_and_optimizer) // 4
    assert part.base == whole.base


def test_more_processes_need_less_each():
    for sizes in (
        [Sizes(dp=2), Sizes(dp=4), Sizes(dp=8)],
        [Sizes(tp=2), Sizes(tp=4)],
        [Sizes(pp=2), Sizes(pp=4), Sizes(pp=8)],
        [Sizes(dp=2, tp=2), Sizes(dp=4, tp=2)],
    ):
        plans = [ParallelPlan("fsdp", size, sharded=size.dp > 1) for size in sizes]
        totals = [needs(plan).total for plan in plans]
        assert totals == sorted(totals, reverse=True), sizes
        assert len(set(totals)) == len(totals)


def test_a_pipeline_keeps_activations_of_the_micro_batches_on_their_way():
    """Under 1F1B of two stages the first keeps two of half the layers, under GPipe all of them (arXiv:2104.04473)."""
    computing = 512 * 4 * (4 * 128 + 4 * shape_of(model_of("llama")).intermediate)  # of the layer that is at work
    one = needs(ParallelPlan()).activations - computing
    gpipe = ParallelPlan("pipeline", Sizes(pp=2), schedule="GPipe")
    assert needs(TWO["pipeline"], micro_batches=8).activations == one + computing
    assert needs(gpipe, micro_batches=8).activations == 4 * one + computing
    interleaved = needs(ParallelPlan("pipeline", Sizes(pp=2), schedule="Interleaved1F1B"), micro_batches=8).activations
    assert one < interleaved - computing < 4 * one


def bytes_of_a_rank(rank: int, name: str) -> tuple[int, int]:
    """Bytes of the weights and of the gradients that a rank holds after the backward pass of a step."""
    strategy = build_strategy(
        resolve_parallel_plan(name), device=CPU, autocast=None, scaler=False, use_accelerate=False, plan=tensor_plan
    )
    parts = take_step(Case("llama", "full", "documents", layers=4), strategy).parts
    strategy.close()
    return sum(weight.nbytes for _, weight, _ in parts.values()), sum(item.nbytes for item, _, _ in parts.values())


@pytest.mark.parametrize("name", ["fsdp", "tensor", "pipeline"])
def test_the_formula_is_near_what_two_ranks_hold(name: str, tmp_path: Path):
    model = build_model("llama", layers=4)
    shape = shape_of(model)
    work = memory.Workload(shape.parameters, None, frozen_bytes=4, tokens=64, compute_bytes=4, full=True)
    whole, blocks = memory.estimate(shape, work, checkpointing=False), blocks_of(model, work, checkpointing=False)
    expected = on_fullest_device(whole, shape, work, blocks, TWO[name], 4)
    whole_for_a_while = gathered(blocks, shape, work) if name == "fsdp" else 0
    held = run_ranks(2, bytes_of_a_rank, name, folder=tmp_path)
    weights, gradients = (max(sizes) for sizes in zip(*held, strict=True))
    assert expected.weights - whole_for_a_while == pytest.approx(weights, rel=0.03)
    assert expected.gradients_and_optimizer == pytest.approx(3 * gradients, rel=0.03)  # and two moments of each


@pytest.mark.parametrize(
    ("kind", "full"),
    [
        ("llama", False),
        ("llama", True),
        pytest.param("qwen3_tied", False, marks=pytest.mark.slow),
        pytest.param("qwen3_tied", True, marks=pytest.mark.slow),
    ],
)
def test_the_formula_lies_above_a_simulated_rank_of_fsdp_on_gpus(kind: str, full: bool):
    """Full fine-tuning gathers 16 bits, embedding and head come by themselves, and each in a buffer beside its weights. The
    formula counts copies of the logits that a compiled loss never makes, most of a model as small as this.
    """
    with torch.device("meta"):
        model = build_model(kind, layers=3, hidden_size=256, vocab_size=20000)
    plan, group, shape = ParallelPlan("fsdp", Sizes(dp=4), sharded=True), [batch(1, 256)], shape_of(model)
    made = job(model, full=full, bf16=True, checkpointing=True, kernels="portable")
    told = simulate(replace(made, device=torch.device("cuda"), parallel=plan), group)
    work = memory.Workload(
        trainable=shape.parameters if full else shape.lora_parameters(8, None),
        bits=None,
        frozen_bytes=4 if full else 2,
        tokens=256,
        compute_bytes=2,
        full=full,
        adapted=0 if full else shape.adapted_inputs(None),
        gpu=True,
    )
    blocks = blocks_of(model, work, checkpointing=True)
    whole = memory.estimate(shape, work, checkpointing=True)
    bound = on_fullest_device(whole, shape, work, blocks, plan, 1)
    assert told.peak <= bound.total - bound.base
    assert bound.total - bound.base - bound.logits < 1.3 * told.peak
