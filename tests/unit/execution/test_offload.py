"""What training.runtime.offload comes to: on a GPU by the numbers, on a CPU nothing, with a line that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.runs import losses, train_lora, weights_digest

from ai_finetuning.errors import ConfigError
from ai_finetuning.execution.offload import Room, possible, resolve_offload
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.limits import OFFLOAD_CHUNK_BYTES
from ai_finetuning.parallel.plan import ParallelPlan
from ai_finetuning.planner import memory
from ai_finetuning.planner.shape import shape_of

GPU, GIB = torch.device("cuda", 0), 2**30
SHAPE = shape_of(build_model("llama", layers=40, hidden_size=256))
WORK = memory.Workload(
    trainable=10**9, bits=None, frozen_bytes=2, tokens=2**20, compute_bytes=2, full=True, optimizer_bytes=8
)


def needs() -> dict[str, memory.MemoryEstimate]:
    whole = memory.estimate(SHAPE, WORK, checkpointing=True)
    return {
        what: memory.offloaded(whole, SHAPE, WORK, what, checkpointing=True)
        for what in ("none", "activations", "optimizer")
    }


def resolved(asked: str, free: int, *, host: int = 10**15, optimizer: str = "adamw", **plan: Any) -> str:
    room = Room(device=free, host=host)
    return resolve_offload(asked, GPU, ParallelPlan(**plan), optimizer, needs=needs(), room=room)


def test_the_estimate_falls_by_what_waits_on_the_host():
    whole, activations, optimizer = needs().values()
    kept = WORK.tokens * 256 * 4  # the input of a layer, in fp32 as its weights are
    assert whole.total - activations.total == kept * (40 - 3)
    assert whole.total - optimizer.total == 8 * WORK.trainable - 3 * OFFLOAD_CHUNK_BYTES


def test_auto_may_move_what_can_be_moved_and_has_room():
    def may(host: int = 10**15, optimizer: str = "adamw", **plan: Any) -> tuple[str, ...]:
        return possible(ParallelPlan(**plan), optimizer, needs=needs(), room=Room(device=1, host=host))

    assert may() == ("activations", "optimizer")
    assert may(optimizer="adamw_8bit") == ("activations",)
    assert may(host=1000) == may(strategy="model_parallel") == may(zero_stage=2) == ()


@pytest.mark.parametrize("asked", ["none", "activations", "optimizer"])
def test_what_is_asked_for_is_done(asked: str):
    assert resolved(asked, 1000 * GIB) == asked
    assert resolved(asked, 1, strategy="fsdp", sizes=Sizes(dp=2), sharded=True) == asked


@pytest.mark.parametrize(
    ("asked", "options", "said"),
    [
        ("activations", {"strategy": "pipeline", "sizes": Sizes(pp=2)}, "ddp"),
        ("optimizer", {"strategy": "model_parallel"}, "ddp"),
        ("optimizer", {"zero_stage": 2}, "ddp"),
        ("optimizer", {"optimizer": "adamw_8bit"}, "adamw"),
        ("optimizer", {"host": GIB}, "1.00 GiB"),
    ],
)
def test_what_cannot_be_done_is_refused(asked: str, options: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said) as caught:
        resolved(asked, 1000 * GIB, **options)
    assert "training.runtime.offload" in str(caught.value)


def test_a_cpu_trains_as_without_it_and_says_so(tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A run may go on with another setting, too."""
    train_lora(tiny_model_dir, tmp_path / "without")
    caplog.clear()
    train_lora(tiny_model_dir, tmp_path / "with", runtime={"offload": "optimizer"})
    assert "offload" in caplog.text
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert weights_digest(tmp_path / "with") == weights_digest(tmp_path / "without")
    train_lora(tiny_model_dir, tmp_path / "with", resume="auto", runtime={"offload": "auto"})
