"""ZeRO-2 and ZeRO-3 by DeepSpeed, set up by Accelerate, on two processes: the step, the runs and the checkpoints of one process."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.test_runs import assert_like, train
from tests.support.parity import CPU, Case, loader, loss_of, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.engine.optimizer import build_optimizer, set_learning_rate
from ai_finetuning.hardware.checkpointing import enable_activation_checkpointing
from ai_finetuning.parallel.mesh import Sizes, build_mesh
from ai_finetuning.parallel.single import SingleDevice
from ai_finetuning.parallel.zero import Zero

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed (the extra `deepspeed`)"
)
# What DeepSpeed calls in torch.distributed under names that torch announces to drop.
pytestmark = [needs_deepspeed, pytest.mark.slow, pytest.mark.filterwarnings("ignore:.torch.distributed:FutureWarning")]
FACTORS = (1.0, 0.3, 0.6)  # of the learning rate, by step


def zero(stage: int, max_grad_norm: float = 0.05, autocast: torch.dtype | None = None) -> Zero:
    return Zero(CPU, build_mesh(Sizes(dp=2), "cpu"), stage=stage, max_grad_norm=max_grad_norm, autocast=autocast)


def steps(case: Case, strategy: Any, max_grad_norm: float = 0.05, checkpointing: bool = False) -> dict[str, Any]:
    """Losses and norms of steps over all documents in two or more micro-batches, a held-out loss, and this rank's tensors."""
    model = model_of(case)
    if checkpointing:
        enable_activation_checkpointing(model)
    model.train()
    strategy.prepare(model, loss_of(case, model))
    optimizer = build_optimizer(strategy.named_parameters(model), learning_rate=1e-4, weight_decay=0.1)
    strategy.attach(optimizer)
    data = loader(case, strategy.data_rank, strategy.data_size)
    found: dict[str, Any] = {"loss": [], "norm": []}
    for factor in FACTORS:
        set_learning_rate(optimizer, factor)
        group = data.micro_batches(0, 0, 2)
        assert len(group) >= 2
        num_valid = strategy.sum(sum(batch.num_label_tokens for batch in group))
        found["loss"].append(strategy.forward_backward(group, num_valid))
        found["norm"].append(strategy.clip_grad_norm(max_grad_norm))
        assert strategy.step()
        optimizer.zero_grad(set_to_none=True)
    found["held out"] = strategy.evaluate(loader(case).micro_batches(0, 0, 2))
    tensors = strategy.tensors(model, optimizer)
    found["tensors"] = {
        f"{group}:{name}": tensor.detach().numpy().copy()
        for group, named in tensors.items()
        for name, tensor in named.items()
    }
    return found


def _rank(rank: int, cases: list[tuple[Case, dict]], stage: int) -> list[dict[str, Any]]:
    found = []
    for case, how in cases:
        strategy = zero(stage)
        found.append(steps(case, strategy, **how))
        strategy.close()
    return found


CASES: list[tuple[Case, dict]] = [
    (Case("llama", "full", "documents"), {}),
    (Case("llama", "lora", "padded"), {}),
    (Case("qwen3_tied", "full", "packed"), {}),
    (Case("llama", "lora", "documents"), {"checkpointing": True}),
]


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_do_the_steps_of_one(stage: int, tmp_path: Path):
    """Losses, norms (above the limit: clipped), weights, moments and counts after steps of changing rates, with and without decay."""
    cases = [*CASES, (Case("llama", "qlora", "documents"), {})] if stage == 2 else CASES
    answers = run_ranks(2, _rank, cases, stage, folder=tmp_path, limit=240)
    for index, (case, how) in enumerate(cases):
        wanted, got = steps(case, SingleDevice(CPU), **how), [rank[index] for rank in answers]
        for rank in got:
            for key in ("loss", "norm"):
                assert rank[key] == pytest.approx(wanted[key], rel=1e-6), (str(case), key)
            assert rank["held out"] == (pytest.approx(wanted["held out"][0], rel=1e-6), wanted["held out"][1])
        assert min(wanted["norm"]) > 0.05
        tensors = got[0]["tensors"] | got[1]["tensors"]
        assert not got[0]["tensors"].keys() & got[1]["tensors"].keys()
        assert tensors.keys() == wanted["tensors"].keys()
        for name, tensor in wanted["tensors"].items():
            assert tensors[name].shape == tensor.shape
            assert abs(tensors[name] - tensor).max() < 5e-6, (str(case), name)


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same runs in one process, by method."""
    folder = tmp_path_factory.mktemp("alone")
    for method in ("full", "lora"):
        train(0, method, tiny_model_dir, folder / method, {}, "", None)
    return {method: folder / method for method in ("full", "lora")}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_is_that_of_one_process(
    stage: int, method: str, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder, parallel = tmp_path / "out", {"deepspeed_stage": stage}
    assert run_ranks(2, train, method, tiny_model_dir, folder, parallel, "", None, folder=tmp_path) == ["done"] * 2
    assert_like(folder, alone[method])


@pytest.mark.parametrize(
    ("first", "second"), [(2, None), (3, None), (None, 2), (None, 3), (2, 3), (3, "fsdp"), ("ddp", 2), ("pipeline", 3)]
)
def test_a_run_goes_on_under_another_strategy(
    first: int | str | None, second: int | str | None, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "out"

    def go(how: int | str | None, fault: str, resume: str | None) -> list[str]:
        parallel = {"deepspeed_stage": how} if isinstance(how, int) else {"strategy": how or "ddp"}
        ranks = 1 if how is None else 2
        return run_ranks(ranks, train, "full", tiny_model_dir, folder, parallel, fault, resume, folder=tmp_path)

    assert set(go(first, "step:term@5%1" if first else "step:term@5", None)) == {"stopped"}
    assert (folder / "checkpoints" / "checkpoint-5").is_dir()
    assert set(go(second, "", "auto")) == {"done"}
    assert_like(folder, alone["full"])
