"""use_accelerate=True in several processes: the step, the runs and the bits of the native path."""

from __future__ import annotations

import logging
import logging.handlers
from pathlib import Path

import pytest
from tests.distributed.test_data_parallel import assert_equal
from tests.support.parity import CPU, Case, differences
from tests.support.ranks import run_ranks
from tests.support.runs import losses, train_full, weights_digest

from ai_finetuning.config.parallel import ParallelConfig
from ai_finetuning.errors import ProcessesError
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.plan import resolve_parallel_plan
from ai_finetuning.parallel.plugins.accelerated import Accelerated, AcceleratedReplicas

CASES = [
    Case("llama", "full", "padded"),
    Case("stablelm", "full", "packed"),
    Case("qwen3_tied", "full", "documents"),
    Case("gpt_neox", "lora", "documents"),
    Case("gemma2", "lora", "padded"),
    # Fewer rows than ranks: one of them computes without labels, and the wrapper still needs every gradient.
    Case("llama", "full", "padded", rows=1),
    Case("llama", "lora", "documents", rows=1),
]


def test_two_ranks_do_the_step_of_one(tmp_path: Path):
    assert_equal(differences(2, CASES, lambda case: AcceleratedReplicas(CPU, build_mesh(Sizes(dp=2), "cpu")), tmp_path))


def train(rank: int, model: Path, folder: Path, use_accelerate: bool, strategy: str, resume: str | None) -> None:
    train_full(model, folder, use_accelerate=use_accelerate, resume=resume, parallel=ParallelConfig(strategy=strategy))


def test_both_paths_train_to_the_same_bits(tiny_model_dir: Path, tmp_path: Path):
    for use_accelerate in (False, True):
        folder = tmp_path / str(use_accelerate)
        run_ranks(2, train, tiny_model_dir, folder, use_accelerate, "ddp", None, folder=tmp_path)
    assert losses(tmp_path / "True") == losses(tmp_path / "False")
    assert weights_digest(tmp_path / "True") == weights_digest(tmp_path / "False")


def chosen(rank: int, strategy: str) -> tuple[str, list[str]]:
    """The strategy that runs, and what is said of it."""
    handler = logging.handlers.BufferingHandler(100)
    logging.getLogger("ai_finetuning").addHandler(handler)
    obtained = build_strategy(
        resolve_parallel_plan(strategy), device=CPU, autocast=None, scaler=False, use_accelerate=True
    )
    return type(obtained).__name__, [record.getMessage() for record in handler.buffer]


def test_only_replicas_run_through_accelerate(tmp_path: Path):
    """Its FSDP plugin on a CPU, for one, would silently be plain DDP (docs/design/distributed.md, fault 3)."""
    assert run_ranks(2, chosen, "ddp", folder=tmp_path) == [("AcceleratedReplicas", [])] * 2
    for strategy, native in (("fsdp", "DataParallel"), ("tensor", "DataParallel"), ("pipeline", "Pipeline")):
        name, logged = run_ranks(2, chosen, strategy, folder=tmp_path)[0]
        assert name == native
        assert f"strategy {strategy} runs on this toolkit's own parallel path" in logged[0]


def after_one_process(rank: int) -> str:
    with pytest.raises(ProcessesError) as error:
        AcceleratedReplicas(CPU, build_mesh(Sizes(dp=2), "cpu"))
    return error.value.en


def test_an_accelerate_that_counts_other_processes_is_refused(tmp_path: Path):
    """It would leave the model unwrapped, and every rank would train on its own."""
    Accelerated(CPU)
    assert "initialised for 1 processes" in run_ranks(2, after_one_process, folder=tmp_path)[0]
