"""What travels between the processes of a run, by whichever library, is tensors and JSON: no object is pickled."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from tests.support.ranks import run_ranks
from tests.support.runs import losses, train_full, train_lora

from ai_finetuning.config.parallel import ParallelConfig


def exchange(rank: int) -> list[Any]:
    """What the test would see: an exchange of objects, which torch pickles."""
    import torch.distributed as dist

    forbid()
    answers: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(answers, rank)
    return answers


def forbid() -> None:
    """All of torch's exchanges of objects go through these two, and Accelerate's and DeepSpeed's through torch's."""
    from torch.distributed import distributed_c10d

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("an object was to be pickled")

    distributed_c10d._object_to_tensor = refuse
    distributed_c10d._tensor_to_object = refuse


def train(rank: int, model: Path, folder: Path, strategy: str, accelerate: bool) -> None:
    os.environ["AIFT_FAULT"] = ""
    forbid()
    parallel = ParallelConfig(strategy=strategy)
    if accelerate:
        train_full(model, folder, use_accelerate=True, num_epochs=1, parallel=parallel)
    else:
        train_lora(model, folder, lora={"lora_dropout": 0.0}, num_epochs=1, parallel=parallel)


def test_an_exchange_of_objects_would_be_seen(tmp_path: Path):
    with pytest.raises(AssertionError, match="an object was to be pickled"):
        run_ranks(2, exchange, folder=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "accelerate"),
    [("ddp", False), ("fsdp", False), ("tensor", False), ("pipeline", False), ("ddp", True)],
    ids=["ddp", "fsdp", "tensor", "pipeline", "accelerate"],
)
def test_no_strategy_pickles(strategy: str, accelerate: bool, tmp_path: Path, tiny_model_dir: Path):
    """Whole runs with checkpoints, evaluation and the saved model."""
    run_ranks(2, train, tiny_model_dir, tmp_path / "out", strategy, accelerate, folder=tmp_path)
    obtained = [float.fromhex(loss) for loss in losses(tmp_path / "out")]
    assert len(obtained) == 6
    assert all(map(math.isfinite, obtained))
