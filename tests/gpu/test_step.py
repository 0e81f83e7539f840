"""A step's waits and copies on a CUDA device: what tests without one show of the logic alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from tests.support.loops import run_of
from tests.support.parity import Case, loader

from ai_finetuning.engine.checkpoint.staging import Staging
from ai_finetuning.engine.loop import advance, fit
from ai_finetuning.engine.prefetch import Prefetched
from ai_finetuning.engine.step import next_step, step_with_retry
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.weights.state import optimizer_tensors

GPU = torch.device("cuda", 0)
CASE = Case("llama", "full", "documents", rows=24)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_a_step_makes_the_host_wait_twice_at_most(tmp_path: Path):
    """torch itself reports what waits; loss and norm are read in one of them."""
    run = run_of(CASE, SingleDevice(GPU, autocast=torch.bfloat16), tmp_path, steps=8)
    run.loader = Prefetched(run.loader, GPU)
    for _ in range(2):
        advance(run, step_with_retry(run, next_step(run)[0]))
    data, _ = next_step(run)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step_with_retry(run, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [str(item.message) for item in caught if "synchron" in str(item.message)]
    assert len(data.group) >= 2
    assert len(waits) <= 2, waits


def test_rows_of_a_step_are_pinned():
    group = Prefetched(loader(CASE), GPU).micro_batches(0, 0, 2)
    assert all(batch.input_ids.is_pinned() and batch.labels.is_pinned() for batch in group)
    assert torch.equal(group[0].to(GPU).input_ids.cpu(), group[0].input_ids)


@pytest.mark.parametrize("chunk", [1000, 2**22])
def test_staged_copies_are_those_of_the_moment(chunk: int):
    """Kernels that change the weights behind the copy do not reach into it, and those before it do."""
    weights = [torch.zeros(700, 333, device=GPU) for _ in range(8)]
    weights.append(torch.zeros(200, 300, device=GPU).t())
    hosts = [torch.empty(weight.shape) for weight in weights]
    staging = Staging(GPU, chunk_bytes=chunk)
    for number in range(1, 4):
        for weight in weights:
            weight.abs_().add_(1)
        staging.copy(zip(weights, hosts, strict=True))
        for weight in weights:
            weight.neg_()
        assert all(bool((host == number).all()) for host in hosts)


def test_a_run_that_saves_beside_the_training_saves_what_it_has(tmp_path: Path):
    run = run_of(CASE, SingleDevice(GPU), tmp_path, steps=3, save_steps=1, save_in_background=True)
    fit(run)
    held = run.writer._copy
    for name, weight in run.model.named_parameters():
        assert torch.equal(held["model"][name], weight.detach().cpu()), name
    for name, moment in optimizer_tensors(run.optimizer).items():
        assert torch.equal(held["optimizer"][name], moment.cpu()), name


@pytest.mark.parametrize("what", ["activations", "optimizer"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "recomputed"])
def test_offload_keeps_the_bits_of_a_run(what: str, checkpointing: bool, tmp_path: Path):
    """Tensors of more than 1 MiB really leave, and come back as they were."""
    weights = []
    for asked in ("none", what):
        strategy = SingleDevice(GPU, autocast=torch.bfloat16)
        case = Case("llama", "full", "documents", rows=240, layers=4, vocabulary=8000)
        run = run_of(case, strategy, tmp_path / asked, rows=240, steps=4)
        run.state.micro_batch_size = 120
        strategy.offload(asked)
        if checkpointing:
            enable_activation_checkpointing(run.model)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            fit(run)
        finally:
            torch.use_deterministic_algorithms(False)
        if asked == "activations" and not checkpointing:
            assert strategy._saved is not None
            assert strategy._saved.moved > 2**20
        if asked == "optimizer":
            assert all(value.is_pinned() for value in strategy.host_states._homes.values())
        weights.append([parameter.detach().cpu() for parameter in run.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))
