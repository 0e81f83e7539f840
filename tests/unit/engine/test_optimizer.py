"""The optimizer's state is made before step 1, and memory that ends there or in an update is told as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.loops import run_of
from tests.support.models import build_model
from tests.support.parity import CPU, Case
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.engine.loop import fit
from ai_finetuning.engine.optimizer import build_optimizer, make_state
from ai_finetuning.errors import OutOfMemoryError
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.weights.state import optimizer_tensors

CASE = Case("llama", "full", "documents", rows=20)


def optimizer_of(name: str, model: Any) -> torch.optim.Optimizer:
    return build_optimizer(
        list(model.named_parameters()),
        name=name,
        learning_rate=1e-3,
        weight_decay=0.1,
        embeddings=[model.get_input_embeddings().weight, model.get_output_embeddings().weight],
    )


@pytest.mark.parametrize("name", ["adamw", "muon", "adamw_8bit"])
def test_a_state_made_beforehand_changes_no_bit(name: str):
    """Two steps with it and without: the same weights, and the same state under the same names."""
    made, plain = build_model("llama"), build_model("llama")
    optimizers = optimizer_of(name, made), optimizer_of(name, plain)
    make_state(optimizers[0])
    for seed in range(2):
        for model, optimizer in zip((made, plain), optimizers, strict=True):
            generator = torch.Generator().manual_seed(seed)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    states = [optimizer_tensors(optimizer) for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    for key, tensor in states[0].items():
        assert tensor.dtype == states[1][key].dtype, key
        assert torch.equal(tensor, states[1][key]), key
    for (key, weight), other in zip(made.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(weight, other), key


class MemoryEnds(TorchDispatchMode):
    """The allocation of a tensor like another one fails, the first time after `after` of them."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(function).startswith("aten.zeros_like"):
            self.left -= 1
            if self.left == -1:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("after", [0, 1, 2, 5], ids=["exp_avg", "exp_avg_sq", "next", "later"])
def test_a_state_that_does_not_fit_is_said_and_leaves_nothing(after: int, tmp_path: Path):
    """Smaller micro-batches would not help, and a second attempt would meet a state of which half is there."""
    run = run_of(CASE, SingleDevice(CPU), tmp_path)
    run.state.micro_batch_size = 4
    with pytest.raises(OutOfMemoryError, match="state|状態"), MemoryEnds(after):
        fit(run)
    assert not run.optimizer.state
    assert run.state.micro_batch_size == 4
    assert fit(run).step == run.total_steps  # once there is memory, a run with nothing left over


def test_memory_that_ends_in_an_update_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A part of the weights may have moved, so the step is not taken again."""
    run = run_of(CASE, SingleDevice(CPU), tmp_path)
    run.state.micro_batch_size = 4
    step, calls = run.optimizer.step, []

    def ending() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        step()

    monkeypatch.setattr(run.optimizer, "step", ending)
    with pytest.raises(OutOfMemoryError, match="weights|重み"):
        fit(run)
    assert len(calls) == 2
    assert run.state.step == 1
    assert run.state.micro_batch_size == 4
