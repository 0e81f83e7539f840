"""Offload on two ranks, each with its part: the bits of a run without it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.loops import run_of
from tests.support.parity import CPU, Case
from tests.support.ranks import run_ranks

from ai_finetuning.engine.loop import fit
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.host_states import HostStates
from ai_finetuning.parallel.lane import AtOnce
from ai_finetuning.parallel.saved_activations import SavedActivations
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.shard import Sharding


def losses(rank: int, folder: Path, sharded: bool, what: str) -> list[tuple[float, float]]:
    strategy = DataParallel(CPU, build_mesh(Sizes(dp=2), "cpu"), sharded=sharded)
    strategy.sharding = Sharding(ends_apart=True)
    run = run_of(Case("llama", "full", "documents", rows=24), strategy, folder, steps=4)
    enable_activation_checkpointing(run.model)
    saved = SavedActivations(AtOnce(), "cpu", min_bytes=64)
    if what == "activations":
        strategy._saved = saved
    if what == "optimizer":
        strategy.host_states = HostStates(run.optimizer, AtOnce(), min_bytes=64, chunk_bytes=40_000)
    fit(run)
    assert what != "activations" or saved.moved > 0
    rows = strategy.gather(read_metrics(folder / "metrics.jsonl") if rank == 0 else None)[0]
    strategy.close()
    return [(row["loss"], row["grad_norm"]) for row in rows if "loss" in row]


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp"])
def test_two_ranks_train_with_the_same_bits(sharded: bool, tmp_path: Path):
    obtained = [
        run_ranks(2, losses, tmp_path / what, sharded, what, folder=tmp_path)
        for what in ("none", "activations", "optimizer")
    ]
    assert len(obtained[0][0]) == 4
    assert obtained[0] == obtained[1] == obtained[2]
