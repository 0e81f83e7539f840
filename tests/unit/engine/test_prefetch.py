"""Rows that a thread makes ahead: the same ones, whatever is asked for next, and its errors in the step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.loops import run_of, watched
from tests.support.parity import CPU, Case, documents, loader
from torch.overrides import TorchFunctionMode

from ai_finetuning.data.collate import Batch
from ai_finetuning.data.loader import Loader
from ai_finetuning.engine.faults import Fault, Faults
from ai_finetuning.engine.loop import advance, fit
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.prefetch import Prefetched
from ai_finetuning.engine.step import next_step, step_with_retry
from ai_finetuning.kernels.attention import document_blocks
from ai_finetuning.parallel.strategies.single import SingleDevice

CASE = Case("llama", "full", "documents", rows=24)


class Noted:
    """A loader that notes who asks for which step, and breaks at one of them."""

    def __init__(self, inner: Any, breaks_at: int | None = None) -> None:
        self.inner, self.breaks_at = inner, breaks_at
        self.asked: list[tuple[int, int, int]] = []
        self.threads: set[str] = set()

    def steps(self, epoch: int) -> int:
        return int(self.inner.steps(epoch))

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        self.asked.append((epoch, index, micro_batch_size))
        self.threads.add(threading.current_thread().name)
        if index == self.breaks_at:
            raise OSError("the data is gone")
        obtained: Sequence[Batch] = self.inner.micro_batches(epoch, index, micro_batch_size)
        return obtained


def steps_of_four(*, packing: bool) -> Loader:
    return Loader(
        documents(CASE.rows),
        rows_per_step=4,
        seed=0,
        packing=packing,
        max_length=48,
        group_by_length=True,
        pad_token_id=0,
    )


def rows(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    """The rows of metrics of a run, without its times."""
    ahead = settings.pop("ahead")
    run = run_of(CASE, SingleDevice(CPU), folder, steps=8, **settings)
    if ahead:
        run.loader = Prefetched(run.loader, CPU)
    run.state.micro_batch_size = 2
    fit(run)
    return [
        {key: row[key] for key in row if key not in ("seconds", "time")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]


def test_a_run_over_epochs_has_the_same_bits(tmp_path: Path):
    plain, ahead = (rows(tmp_path / str(ahead), ahead=ahead) for ahead in (False, True))
    assert len(plain) == 8 + 2
    assert plain == ahead


def test_a_step_is_done_again_with_half_the_rows_where_memory_runs_out(tmp_path: Path):
    """What was made ahead for the larger micro-batch is not used."""

    plain, ahead = (
        rows(tmp_path / str(ahead), ahead=ahead, faults=Faults([Fault("step", "oom", 2, skip=0, times=1)]))
        for ahead in (False, True)
    )
    assert [row["micro_batch_size"] for row in plain if "loss" in row] == [2, *[1] * 7]
    assert plain == ahead


def test_the_next_step_is_made_while_this_one_computes():
    noted = Noted(steps_of_four(packing=False))
    ahead = Prefetched(noted, CPU)
    last = noted.steps(0) - 1
    ahead.micro_batches(0, 0, 2)
    assert ahead._ahead is not None
    ahead._ahead[1].result()
    assert noted.asked == [(0, 0, 2), (0, 1, 2)]
    ahead.micro_batches(0, 1, 2)
    ahead.micro_batches(0, last, 2)  # as a resumed run begins anywhere
    assert noted.asked[-1] == (0, last, 2)
    assert ahead._ahead is None  # nothing beyond the epoch
    assert threading.current_thread().name not in noted.threads


def test_an_error_of_the_thread_is_raised_in_the_step_that_needs_the_rows(tmp_path: Path):
    run = run_of(CASE, SingleDevice(CPU), tmp_path, steps=8)
    run.loader = Prefetched(Noted(run.loader, breaks_at=2), CPU)
    with pytest.raises(OSError, match="the data is gone"):
        fit(run)
    assert run.state.step == 2


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_step_reads_the_device_once(packing: bool, autocast: torch.dtype | None, tmp_path: Path):
    """Rows with masked prompts, in several micro-batches; nothing is read inside one of them."""
    strategy = SingleDevice(CPU, autocast=autocast)
    run = run_of(CASE, strategy, tmp_path, rows=8)
    run.loader = Prefetched(steps_of_four(packing=packing), CPU)
    advance(run, step_with_retry(run, next_step(run)[0]))
    with watched(strategy) as events:
        data, _ = next_step(run)
        step_with_retry(run, data)
    assert len(data.group) == 4
    assert events == ["agree", "begin", "end", "read"]


class FromTheHost(TorchFunctionMode):
    """Takes copies to a GPU that is not there, and notes those that would wait for it: not pinned, or blocking."""

    def __init__(self) -> None:
        super().__init__()
        self.pinned: set[int] = set()
        self.waiting, self.copies, self.alive = 0, 0, list[torch.Tensor]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.pin_memory:
            self.alive.append(args[0].clone())
            self.pinned.add(self.alive[-1].data_ptr())
            return self.alive[-1]
        if func is torch.Tensor.to and len(args) > 1 and str(args[1]).startswith("cuda"):
            self.copies += 1
            self.waiting += args[0].data_ptr() not in self.pinned or not kwargs.get("non_blocking")
            return args[0].clone()
        return func(*args, **kwargs)


def test_copies_of_a_step_to_a_gpu_do_not_wait():
    """Batches, and the mask of attention by documents."""
    gpu = torch.device("cuda", 0)
    with FromTheHost() as seen:
        for batch in loader(CASE).micro_batches(0, 0, 2)[:1] + loader(Case("llama")).micro_batches(0, 0, 2)[:1]:
            batch.pinned().to(gpu)
        document_blocks.__wrapped__((130, 200, 7), 64, gpu)
    assert seen.copies == 3 + 4 + 5
    assert seen.waiting == 0
