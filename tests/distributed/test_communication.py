"""What ddp sends, once an optimizer step however many micro-batches it has, and what ranks hold of gradients."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.support.parity import CPU, Case, loader, loss_of, model_of
from tests.support.ranks import run_ranks
from torch._subclasses.fake_tensor import FakeTensor

from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.weights.layout import local

MICRO_BATCHES = (1, 3, 6)


def sent(rank: int, method: str) -> list[tuple[int, int]]:
    """(micro-batches, bytes sent) of optimizer steps over the same rows."""
    case = Case("llama", method, rows=12)
    model = model_of(case)
    strategy = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"))
    strategy.prepare(model, loss_of(case, model))
    obtained, before = [], 0
    for count in MICRO_BATCHES:
        group = loader(case, strategy.data_rank, strategy.data_size).micro_batches(0, 0, 6 // count)
        strategy.forward_backward(group, 100.0)
        obtained.append((len(group), strategy.sent_bytes - before))
        before = strategy.sent_bytes
        model.zero_grad(set_to_none=True)
    return obtained


@pytest.mark.parametrize("method", ["full", "lora"])
def test_only_what_trains_is_sent_and_once_a_step(method: str, tmp_path: Path):
    trained = [p for p in model_of(Case("llama", method)).parameters() if p.requires_grad]
    whole = sum(p.numel() for p in model_of(Case("llama")).parameters())
    size = 4 * sum(p.numel() for p in trained)
    assert size == 4 * whole if method == "full" else size < whole
    assert run_ranks(2, sent, method, folder=tmp_path) == [[(count, size) for count in MICRO_BATCHES]] * 2


def held() -> int:
    """Bytes of the storages of all tensors that Python knows in this process; fake ones, of tests before, have none."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        kind = type(thing)
        if issubclass(kind, torch.Tensor) and not issubclass(kind, FakeTensor) and thing.device.type == "cpu":
            storage = local(thing.detach()).untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def memory_of_steps(rank: int, sharded: bool) -> dict[str, float]:
    """Bytes for each trained weight: added between the two micro-batches of a step, and held between steps."""
    case = Case("llama", rows=12)
    model = model_of(case)
    strategy = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=sharded)
    strategy.prepare(model, loss_of(case, model))
    optimizer = strategy.attach(build_optimizer(strategy.named_parameters(model), learning_rate=1e-3))
    weights = sum(p.numel() for p in model.parameters())
    group = loader(case, strategy.data_rank, strategy.data_size).micro_batches(0, 0, 3)
    assert len(group) == 2
    communicating, between, others = strategy._communicating, [], held()

    def beginning(last: bool) -> Any:
        if last:
            between.append(held())
        return communicating(last)

    strategy._communicating = beginning  # type: ignore[method-assign]
    loss = strategy.forward_backward(group, 100.0)
    shared = {p.grad.untyped_storage().data_ptr() for p in model.parameters()} if not sharded else set()
    strategy.update(loss, 1.0)
    optimizer.zero_grad(set_to_none=True)
    del loss
    return {
        "gradients": (between[0] - others) / weights,
        "after": (held() - others) / weights,
        "buckets": len(shared),
    }


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_gradients_are_held_once_and_not_between_steps(sharded: bool, tmp_path: Path):
    """ddp: views of the bucket that is sent; fsdp: this rank's part, from the first micro-batch on."""
    share = 2 if sharded else 1
    for rank in run_ranks(2, memory_of_steps, sharded, folder=tmp_path):
        assert 3.9 < share * rank["gradients"] < 4.4, rank
        assert 7.9 < share * rank["after"] < 8.4, rank  # AdamW's moments alone
        assert sharded or rank["buckets"] == 1


def start(rank: int, method: str) -> tuple[int, float, float]:
    """Bytes sent when a run begins, and two weights of this rank behind it, a trained one and the last."""
    case = Case("llama", method)
    model = model_of(case)
    if rank:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(3.0)
    broadcast, counted = dist.broadcast, []

    def counting(tensor: torch.Tensor, *args: Any, **options: Any) -> Any:
        counted.append(tensor.nbytes)
        return broadcast(tensor, *args, **options)

    dist.broadcast = counting
    try:
        DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu")).prepare(model, loss_of(case, model))
    finally:
        dist.broadcast = broadcast
    trained = next(p for p in model.parameters() if p.requires_grad)
    return sum(counted), float(trained.detach().sum()), float(list(model.parameters())[-1].detach().sum())


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_begins_by_sending_what_trains(method: str, tmp_path: Path):
    """Every rank has read the frozen weights from the same file; to send 8B of them takes minutes."""
    size = sum(p.nbytes for p in model_of(Case("llama", method)).parameters() if p.requires_grad)
    first, second = run_ranks(2, start, method, folder=tmp_path)
    assert first == second
    assert first[0] == size
