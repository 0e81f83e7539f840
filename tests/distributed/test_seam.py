"""What a step sends and reads on two ranks, and that the ranks agree on what is asked of the loop."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.loops import run_of, watched
from tests.support.parity import CPU, Case
from tests.support.ranks import run_ranks

from ai_finetuning.engine.hooks import Callback
from ai_finetuning.engine.loop import advance, fit
from ai_finetuning.engine.step import next_step, step_with_retry
from ai_finetuning.errors import PreemptedError
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.parallel.plan import resolve_parallel_plan

STRATEGIES = ["ddp", "fsdp", "pipeline", "tensor"]


def strategy_of(name: str, scaler: bool = False) -> Any:
    return build_strategy(
        resolve_parallel_plan(name), device=CPU, autocast=None, scaler=scaler, use_accelerate=False, plan=tensor_plan
    )


def events_of_a_step(rank: int, folder: Path, name: str, scaler: bool) -> list[str]:
    """Of the third step, in four micro-batches (two a data rank); the first ones set things up."""
    strategy = strategy_of(name, scaler)
    run = run_of(Case("llama", "lora", "documents", rows=40), strategy, folder / str(rank), retry_smaller=False)
    for _ in range(2):
        advance(run, step_with_retry(run, next_step(run)[0]))
    with watched(strategy) as events:
        advance(run, step_with_retry(run, next_step(run)[0]))
    strategy.close()
    return events


@pytest.mark.parametrize("scaler", [False, True], ids=["fp32", "scaled"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_step_makes_one_reduction_between_hosts_and_one_read_of_the_device(name: str, scaler: bool, tmp_path: Path):
    """Counts of tokens and flags in one message before the first forward pass, loss and norm in one sum and one read;
    nothing is read inside a micro-batch.
    """
    for events in run_ranks(2, events_of_a_step, tmp_path, name, scaler, folder=tmp_path):
        assert events == ["agree", "message", "begin", "end", "sum", "read"]


class Asks(Callback):
    """Raises flags after given steps, and notes what it is told."""

    def __init__(self, asks: dict[int, str]) -> None:
        self._asks, self.reported = asks, []

    def on_step_end(self, state: Any, control: Any, row: Any) -> None:
        self.reported.append(("step", state.step))
        for flag in filter(None, self._asks.get(state.step, "").split()):
            setattr(control, flag, True)

    def on_evaluate(self, state: Any, control: Any, row: Any) -> None:
        self.reported.append(("evaluate", state.step))

    def on_save(self, state: Any, control: Any, folder: Path) -> None:
        self.reported.append(("save", state.step))


def asking(rank: int, folder: Path, name: str, asks: dict[int, str]) -> list[tuple[str, int]]:
    """A run of six steps in which the last rank alone asks for something."""
    strategy = strategy_of(name)
    run = run_of(Case("llama", "full", "padded"), strategy, folder, steps=6)
    run.callbacks = [Asks(asks if rank == 1 else {})]
    fit(run)
    strategy.close()
    return run.callbacks[0].reported


@pytest.mark.parametrize("name", ["ddp", "pipeline"])
def test_what_a_callback_of_one_rank_asks_for_happens_on_all(name: str, tmp_path: Path):
    asks = {2: "should_save", 3: "should_evaluate", 4: "should_training_stop should_save"}
    expected = [("evaluate", 0), ("step", 1), ("step", 2), ("save", 2), ("step", 3), ("evaluate", 3)]
    expected += [("step", 4), ("save", 4)]
    assert run_ranks(2, asking, tmp_path / "run", name, asks, folder=tmp_path) == [expected] * 2
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"checkpoint-2", "checkpoint-4"}
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]


class Signals(Callback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, model: torch.nn.Module, step: int, number: int) -> None:
        self._step, self._number = step, number
        self._state: Any = None
        model.register_forward_pre_hook(self._send)

    def on_train_begin(self, state: Any, control: Any) -> None:
        self._state = state

    def _send(self, *_: Any) -> None:
        if self._state is not None and self._state.step + 1 == self._step:
            self._step = -1
            os.kill(os.getpid(), self._number)


def signalled(rank: int, folder: Path, number: int) -> tuple[str, int]:
    strategy = strategy_of("ddp")
    run = run_of(Case("llama", "full", "padded"), strategy, folder, steps=6)
    if rank == 1:
        run.callbacks = [Signals(run.model, 3, number)]
    try:
        fit(run)
        end = "done"
    except PreemptedError:
        end = "stopped"
    return end, run.state.step


def test_a_signal_during_a_step_acts_when_that_step_ends(tmp_path: Path):
    """On all ranks, though one of them got it after the step's reduction."""
    for number, expected in ((signal.SIGTERM, ("stopped", 3)), (signal.SIGUSR1, ("done", 6))):
        folder = tmp_path / str(number)
        assert run_ranks(2, signalled, folder, number, folder=tmp_path) == [expected] * 2
        assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]


def spoiled(rank: int, folder: Path, name: str, what: str) -> list[tuple[bool, bool, bool]]:
    """(finite, updated, weights changed) of three steps; the second is not finite on the last rank."""
    strategy, spoil = strategy_of(name), [False]
    run = run_of(Case("llama", "full", "padded"), strategy, folder / str(rank))
    forward_backward = strategy.forward_backward

    def bad(group: Any, num_valid: float) -> Any:
        loss = forward_backward(group, num_valid)
        if spoil[0] and rank == 1 and what == "loss":
            return loss + math.inf
        if spoil[0] and rank == 1:
            next(p for _, p in strategy.named_parameters(run.model) if p.grad is not None).grad.fill_(math.nan)
        return loss

    strategy.forward_backward = bad
    obtained = []
    for step in range(3):
        spoil[0] = step == 1
        before = [p.detach().clone() for _, p in strategy.named_parameters(run.model)]
        outcome = step_with_retry(run, next_step(run)[0])
        advance(run, outcome)
        after = strategy.named_parameters(run.model)
        changed = any(not torch.equal(a, p) for a, (_, p) in zip(before, after, strict=True))
        obtained.append((outcome.finite, outcome.updated, changed))
    strategy.close()
    return obtained


@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("name", ["ddp", "fsdp", "pipeline"])
def test_what_is_not_finite_on_one_rank_reaches_the_weights_of_none(name: str, what: str, tmp_path: Path):
    """And the step after it is a good one again."""
    if name == "ddp" and what == "gradient":
        pytest.skip("the gradients of replicas are summed already where this test spoils them")
    expected = [(True, True, True), (False, False, False), (True, True, True)]
    assert run_ranks(2, spoiled, tmp_path, name, what, folder=tmp_path) == [expected] * 2
