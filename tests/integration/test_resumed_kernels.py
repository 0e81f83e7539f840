"""A run computes its steps to the end in the way in which it began, whatever this version would choose."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.commands import call, write_run
from tests.support.runs import weights_digest

from ai_finetuning.config.run_folder import LAUNCH
from ai_finetuning.errors import Reason
from ai_finetuning.execution import build, processes
from ai_finetuning.execution.launcher import Ended
from ai_finetuning.kernels import products
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.kernels.products import (
    OPENBLAS,
    OPENBLAS_HEADS,
    PIECES,
    PIECES_HEADS,
    TORCH,
    TORCH_HEADS,
    why_no_pieces,
    why_not_here,
)
from ai_finetuning.models import fused
from ai_finetuning.system import cores

AUTO = "training.resume_from_checkpoint=auto"
REASON = why_unavailable(torch.device("cpu"), torch.float32)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels here: {REASON}")


def interrupted(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """The settings of a run of fp32 that was stopped behind its third step."""
    config = str(write_run(folder, model, num_epochs=1))
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@3")
        assert call("train", config, *overrides) == 75
    return config


def recorded(folder: Path, name: str = "kernels") -> str:
    run: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    return str(run["derived"][name])


@contextlib.contextmanager
def computers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """What makes this computer one with so many cores, where nobody has asked for a number of threads."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def computer(number: int) -> None:
        for module in (build, cores, processes):
            monkeypatch.setattr(module, "physical_cores", lambda: number)
        torch.set_num_threads(number)

    with cores.threads_kept():
        yield computer


def test_a_new_run_in_fp32_takes_the_fused_blocks_to_its_end(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = interrupted(tmp_path, tiny_model_dir, monkeypatch)
    assert recorded(tmp_path) == "fused"
    assert call("train", config, AUTO) == 0
    assert recorded(tmp_path) == "fused"


def test_a_run_that_began_portable_stays_so(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = interrupted(tmp_path, tiny_model_dir, monkeypatch, "training.runtime.kernels=portable")
    assert call("train", config, AUTO) == 0
    assert recorded(tmp_path) == "portable"


def test_where_the_fused_blocks_are_missing_it_is_refused_with_the_way_out(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    config = interrupted(tmp_path, tiny_model_dir, monkeypatch)
    monkeypatch.setattr(fused, "why_unavailable", lambda *_: Reason("コンパイラーがありません", "no compiler"))
    assert call("train", config, AUTO) == 78
    assert "this run began with the fused blocks, which cannot be used here (no compiler)" in logged()
    assert call("train", config, AUTO, "training.runtime.kernels=portable") == 0
    assert recorded(tmp_path) == "portable"


# Of each way: the function that says whether a part of it is here, and what a refusal calls that.
MISSING = {
    OPENBLAS: ("why_not_openblas", "OpenBLAS's matrix products"),
    PIECES: ("why_no_pieces", "matrix products in pieces"),
    TORCH_HEADS: ("why_no_pieces", "attention by heads"),
    OPENBLAS_HEADS: ("why_no_pieces", "attention by heads"),
}
NOT_HERE = {name: why_not_here(name, torch.float32) for name in MISSING}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def unless(reason: Reason | None, *values: str) -> Any:
    """A case that is skipped for a reason of its own (tests/unit/kernels/test_products.py refuses one that should not be)."""
    return pytest.param(*values, marks=pytest.mark.skipif(reason is not None, reason=f"not here: {reason}"))


@pytest.mark.parametrize(
    ("began", "now"),
    [unless(NOT_HERE[name], *ways) for name in NOT_HERE for ways in ((name, TORCH), (TORCH, name))],
)
def test_products_stay_those_of_the_run_and_are_refused_where_they_are_missing(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any, began: str, now: str
):
    monkeypatch.setattr(build, "chosen_products", lambda *_: began)
    config = interrupted(tmp_path, tiny_model_dir, monkeypatch)
    assert recorded(tmp_path, "products") == began
    monkeypatch.setattr(build, "chosen_products", lambda *_: now)
    if began in MISSING:
        asked, called = MISSING[began]
        with monkeypatch.context() as patch:
            patch.setattr(products, asked, lambda *_: Reason("ありません", "not there"))
            assert call("train", config, AUTO) == 78
        assert f"began with {called}, which cannot be had here (not there)" in logged()
    assert call("train", config, AUTO) == 0
    assert recorded(tmp_path, "products") == began


@pytest.mark.parametrize("precision", [unless(why_no_pieces(dtype), name) for name, dtype in PRECISIONS.items()])
@pytest.mark.parametrize("way", [PIECES, PIECES_HEADS])
def test_a_run_in_pieces_resumes_bit_for_bit(
    way: str, precision: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build, "chosen_products", lambda *_: way)
    monkeypatch.setattr(fused, "why_not_worth", lambda *_: None)  # bf16 on a processor without it, too
    settings = (f"training.runtime.precision={precision}", "data.packing=true")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    assert call("train", str(write_run(whole, tiny_model_dir, num_epochs=1)), *settings) == 0
    config = interrupted(stopped, tiny_model_dir, monkeypatch, *settings)
    assert call("train", config, AUTO, *settings) == 0
    assert recorded(whole, "products") == recorded(stopped, "products") == way
    assert weights_digest(whole / "out") == weights_digest(stopped / "out")


def test_threads_stay_those_of_the_run_and_are_refused_where_cores_are_missing(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    with computers(monkeypatch) as computer:
        computer(2)
        config = interrupted(tmp_path, tiny_model_dir, monkeypatch)
        assert int(recorded(tmp_path, "threads")) == 2
        computer(1)
        assert call("train", config, AUTO) == 78
        assert "this run began with 2 threads, and 1 cores can be used here" in logged()
        computer(3)
        assert call("plan", config, AUTO, "--pilot") == 0
        assert torch.get_num_threads() == 3  # as the program had it
        with monkeypatch.context() as patch:
            patch.setenv("AIFT_FAULT", "step:term@5")
            assert call("train", config, AUTO) == 75
        assert int(recorded(tmp_path, "threads")) == 2
        assert torch.get_num_threads() == 3  # as the program had it
        computer(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert call("train", config, AUTO) == 0
        assert "began with 2 threads and goes on with 1, as asked" in logged()
        assert int(recorded(tmp_path, "threads")) == 1


def test_threads_that_the_processes_cannot_have_are_refused_before_any_starts(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    """Started, each would take its share of the cores for a number that somebody has asked for, and go on with it."""
    started: list[int | None] = []

    def launch(*_: Any, threads: int | None, **__: Any) -> Ended:
        """In place of the processes, which this test does not need."""
        started.append(threads)
        return Ended(0, -15, stopped=True)

    monkeypatch.setattr(processes, "launch", launch)
    with computers(monkeypatch) as computer:
        computer(2)
        config = interrupted(tmp_path, tiny_model_dir, monkeypatch)
        resumed = ("train", config, AUTO, "--cpu-processes", "2")
        computer(3)  # one a process
        assert call(*resumed) == 78
        assert "this run began with 2 threads, and 1 cores can be used here" in logged()
        assert not started
        assert not (tmp_path / "out" / LAUNCH).exists()
        computer(4)
        assert call(*resumed) == 75
        monkeypatch.setenv("OMP_NUM_THREADS", "1")  # somebody's own number is not refused
        computer(2)
        assert call(*resumed) == 75
        assert started == [2, 2]
