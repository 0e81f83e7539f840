"""fp16's loss scaling on several ranks, with a real scaler on CPU: an overflow on one rank skips the step on all."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.parity import CPU, Case, differences, loader, loss_of, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.parallel.plan import resolve_parallel_plan

CASE = Case("llama", "lora")


def scaled(case: Case, name: str) -> Any:
    """The strategy with a scaler, as `fp16: true` on a GPU has it."""
    accelerate = name == "accelerate"
    choice = resolve_parallel_plan("ddp" if accelerate else name)
    return build_strategy(choice, device=CPU, autocast=None, scaler=True, use_accelerate=accelerate, plan=tensor_plan)


def overflow_on_the_first(rank: int, name: str) -> list[Any]:
    """Three steps, the second with an overflow in a single number that only rank 0 sees: (norm is finite, updated,
    scale, weights changed).
    """
    model = model_of(CASE)
    strategy = scaled(CASE, name)
    strategy.prepare(model, loss_of(CASE, model))
    trained = [(key, p) for key, p in strategy.named_parameters(model) if p.requires_grad]
    optimizer = build_optimizer(trained, learning_rate=1e-3)
    strategy.attach(optimizer)
    group = loader(CASE, strategy.data_rank, strategy.data_size).micro_batches(0, 0, 2)
    (num_valid,), _ = strategy.agree([sum(batch.num_label_tokens for batch in group)])
    reported = []
    for step in range(3):
        before = [p.detach().clone() for _, p in trained]
        loss = strategy.forward_backward(group, num_valid)
        if step == 1 and rank == 0:
            trained[0][1].grad.view(-1)[0] = torch.inf
        update = strategy.update(loss, 1.0)
        optimizer.zero_grad(set_to_none=True)
        changed = any(not torch.equal(a, p) for a, (_, p) in zip(before, trained, strict=True))
        reported.append((math.isfinite(update.grad_norm), update.applied, strategy.state_dict()["scale"], changed))
    strategy.close()
    return reported


# Three ranks under fsdp: a matrix of four rows leaves the last of them an empty part.
@pytest.mark.parametrize(("name", "ranks"), [("fsdp", 3), ("tensor", 2), ("pipeline", 2)])
def test_an_overflow_on_one_rank_skips_the_step_on_all(name: str, ranks: int, tmp_path: Path):
    reported = run_ranks(ranks, overflow_on_the_first, name, folder=tmp_path)
    expected = [(True, True, 65536.0, True), (False, False, 32768.0, False), (True, True, 32768.0, True)]
    assert reported == [expected] * ranks


def test_scaled_steps_are_those_of_one_process_without_a_scale(tmp_path: Path):
    """65536 is a power of two: loss, norm and update stay what they are in fp32."""
    for name in ("ddp", "accelerate", "fsdp", "tensor"):
        (worst,) = differences(2, [CASE], lambda case, name=name: scaled(case, name), tmp_path).values()
        assert worst["loss"] < 1e-6, (name, worst)
        assert worst["norm"] < 5e-6, (name, worst)
        assert worst["weight"] < 5e-5, (name, worst)
