"""What ddp sends: the gradients of what trains, once an optimizer step, however many micro-batches it has."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.parity import CPU, Case, loader, loss_of, model_of
from tests.support.ranks import run_ranks

from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel

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
