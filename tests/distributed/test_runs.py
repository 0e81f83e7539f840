"""Whole runs under every strategy: losses and models of one process, resumed under any other, stopped by a signal to
one rank.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import run_ranks
from tests.support.runs import losses, train_full, train_lora

from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.errors import ConfigError, PreemptedError
from ai_finetuning.parallel.plan import resolve_parallel_plan

STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"strategy": "ddp"},
    "fsdp": {"strategy": "fsdp"},
    "tensor": {"strategy": "tensor"},
    "pipeline": {"strategy": "pipeline"},
}
TRAIN = {"full": train_full, "lora": train_lora}


def train(
    rank: int, method: str, model: Path, folder: Path, parallel: dict[str, Any], fault: str, resume: str | None
) -> str:
    """One rank of a run; `stopped` where a signal ended it."""
    os.environ["AIFT_FAULT"] = fault
    extra: dict[str, Any] = {"lora": {"lora_dropout": 0.0}} if method == "lora" else {}
    try:
        TRAIN[method](model, folder, resume=resume, parallel=ParallelConfig(**parallel), **extra)
    except PreemptedError:
        return "stopped"
    return "done"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def alone(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same runs in one process, by method."""
    folder = tmp_path_factory.mktemp("alone")
    for method in TRAIN:
        train(0, method, tiny_model_dir, folder / method, {}, "", None)
    return {method: folder / method for method in TRAIN}


def assert_like(folder: Path, alone: Path) -> None:
    """Every step's loss, and every saved weight under its own name, as one process has them."""
    obtained, expected = ([float.fromhex(loss) for loss in losses(place)] for place in (folder, alone))
    assert len(obtained) == len(expected)
    assert max(abs(a - b) for a, b in zip(obtained, expected, strict=True)) < 2e-6
    saved, plain = weights(folder), weights(alone)
    assert saved.keys() == plain.keys()
    assert all(saved[name].dtype == plain[name].dtype for name in plain)
    assert max(float((saved[name] - plain[name]).abs().max()) for name in plain) < 5e-5


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_is_that_of_one_process(
    name: str, method: str, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "out"
    assert run_ranks(2, train, method, tiny_model_dir, folder, STRATEGIES[name], "", None, folder=tmp_path) == [
        "done",
        "done",
    ]
    assert_like(folder, alone[method])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("fsdp", "pipeline"),
        ("pipeline", "tensor"),
        ("tensor", "ddp"),
        ("ddp", "fsdp"),
        ("fsdp", None),
        (None, "tensor"),
    ],
)
def test_a_run_goes_on_under_another_strategy(
    first: str | None, second: str | None, alone: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
):
    folder = tmp_path / "out"

    def go(name: str | None, fault: str, resume: str | None) -> list[str]:
        if name is None:
            return run_ranks(1, train, "full", tiny_model_dir, folder, {}, fault, resume, folder=tmp_path)
        return run_ranks(2, train, "full", tiny_model_dir, folder, STRATEGIES[name], fault, resume, folder=tmp_path)

    # The signal reaches the last rank only; all save and stop together.
    assert set(go(first, "step:term@5%1" if first else "step:term@5", None)) == {"stopped"}
    assert (folder / "checkpoints" / "checkpoint-5").is_dir()
    assert set(go(second, "", "auto")) == {"done"}
    assert_like(folder, alone["full"])


def test_sizes_that_cannot_be_are_refused_with_the_numbers():
    def refused(name: str, processes: int, **sizes: int) -> str:
        with pytest.raises(ConfigError) as error:
            resolve_parallel_plan(name, processes=processes, **sizes)
        return error.value.en

    assert "3 processes cannot be divided by pipeline_parallel_size 1 x tensor_parallel_size 2" in refused(
        "ddp", 3, tensor_parallel_size=2
    )
    assert "--cpu-processes 4" in refused("pipeline", 1, pipeline_parallel_size=2, tensor_parallel_size=2)
    assert "there are 2" in refused("model_parallel", 2)
    assert "training.world_size is 4, but the run has 2 processes" in refused("ddp", 2, world_size=4)
    assert "training.local_rank is 3" in refused("ddp", 2, local_rank=3)


def test_auto_is_put_in_words_before_anything_starts(tiny_model_dir: Path, tmp_path: Path, logged: Any):
    from ai_finetuning.config.load import load_config
    from ai_finetuning.execution.request import request_of
    from ai_finetuning.execution.resolve import resolve

    (tmp_path / "texts.txt").write_text("日本の首都は東京です。\n\n今日は良い天気ですね。\n", encoding="utf-8")
    overrides = [
        f"model={tiny_model_dir}",
        "method=full",
        f"data.train={tmp_path / 'texts.txt'}",
        "parallel.strategy=auto",
        "parallel.processes=2",
        f"training.output_dir={tmp_path / 'out'}",
    ]
    plan = resolve(request_of(load_config(None, overrides), "cpu"))
    assert plan.parallel.strategy == "ddp"
    assert plan.processes_to_start == plan.parallel.processes == 2
    assert "parallel.strategy auto: one device holds everything" in logged()
