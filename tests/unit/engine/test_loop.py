"""The loop in one process: what it reads of the device, when it calls its callbacks, and what they can ask of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.support.loops import run_of, watched
from tests.support.parity import CPU, Case

from ai_finetuning.engine.faults import Faults
from ai_finetuning.engine.hooks import Callback, SignalFlags
from ai_finetuning.engine.loop import advance, fit
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.step import next_step, step_with_retry
from ai_finetuning.parallel.plugins.accelerated import Accelerated
from ai_finetuning.parallel.strategies.single import SingleDevice

CASE = Case("llama", "full", "documents", rows=20)


@pytest.mark.parametrize("scaler", [False, True], ids=["fp32", "scaled"])
@pytest.mark.parametrize("kind", [SingleDevice, Accelerated])
def test_a_step_reads_the_device_once(kind: Any, scaler: bool, tmp_path: Path):
    """Loss and norm together, after all micro-batches; counts of tokens are the host's."""
    strategy = kind(CPU, scaler=scaler)
    run = run_of(CASE, strategy, tmp_path)
    advance(run, step_with_retry(run, next_step(run)[0]))
    with watched(strategy) as events:
        data, _ = next_step(run)
        step_with_retry(run, data)
    assert len(data.group) >= 2
    assert events == ["agree", "begin", "end", "read"]


def test_the_counter_sees_every_way_to_wait():
    """Else a step without reads would say nothing."""
    strategy, numbers = SingleDevice(CPU), torch.tensor([0.5, -1.0])
    ways = [
        lambda: float(numbers[0]),
        lambda: bool((numbers > 0).all()),
        lambda: numbers.tolist(),
        lambda: numbers[numbers > 0],
        lambda: numbers.nonzero(),
        lambda: torch.equal(numbers, numbers),
    ]
    for way in ways:
        with watched(strategy) as events:
            way()
        assert events == ["read"]


def test_padded_rows_with_a_label_are_found_without_a_read(tmp_path: Path):
    """The loss of padded rows reads nothing either; what transformers reads for its masks is its own."""
    from ai_finetuning.engine.loss import make_loss

    strategy = SingleDevice(CPU)
    run = run_of(Case("llama", rows=20), strategy, tmp_path, rows=8)
    run.state.micro_batch_size = 4
    data, _ = next_step(run)
    batch = data.group[0]
    logits = torch.zeros(4, batch.input_ids.shape[1], 400)

    def model(logits_to_keep: Any = slice(None), **_: Any) -> Any:
        return SimpleNamespace(logits=logits[:, logits_to_keep])

    for keep in (True, False):
        with watched(strategy) as events:
            make_loss(logits_to_keep=keep)(model, batch)  # type: ignore[arg-type]
        assert events == []


class Recorder(Callback):
    """Every call, with the step; asks for what a table says."""

    def __init__(self, asks: dict[tuple[str, int], str] | None = None) -> None:
        self.reported: list[tuple[str, int]] = []
        self.closed = 0
        self._asks = asks or {}

    def _tell(self, event: str, state: Any, control: Any) -> None:
        self.reported.append((event, state.step))
        flag = self._asks.get((event, state.step))
        if flag is not None:
            setattr(control, flag.removeprefix("not "), not flag.startswith("not "))

    def on_train_begin(self, state: Any, control: Any) -> None:
        self._tell("train_begin", state, control)

    def on_epoch_begin(self, state: Any, control: Any) -> None:
        self._tell("epoch_begin", state, control)

    def on_step_end(self, state: Any, control: Any, row: Any) -> None:
        assert row["step"] == state.step
        self._tell("step_end", state, control)

    def on_log(self, state: Any, control: Any, row: Any) -> None:
        assert "loss" in row
        self._tell("log", state, control)

    def on_evaluate(self, state: Any, control: Any, row: Any) -> None:
        assert "eval_loss" in row
        self._tell("evaluate", state, control)

    def on_save(self, state: Any, control: Any, folder: Path) -> None:
        assert folder.name == f"checkpoint-{state.step}"
        self._tell("save", state, control)

    def on_epoch_end(self, state: Any, control: Any) -> None:
        self._tell("epoch_end", state, control)

    def on_train_end(self, state: Any, control: Any) -> None:
        self._tell("train_end", state, control)

    def close(self) -> None:
        self.closed += 1


def reported(tmp_path: Path, asks: dict[tuple[str, int], str] | None = None, **settings: Any) -> list[tuple[str, int]]:
    """Calls of a run of six steps, three an epoch."""
    run = run_of(Case("llama", rows=12), SingleDevice(CPU), tmp_path, **{"steps": 6, "logging_steps": 4} | settings)
    run.callbacks = [Recorder(asks)]
    fit(run)
    assert run.callbacks[0].closed == 1
    return run.callbacks[0].reported


def test_callbacks_are_called_in_the_order_of_transformers(tmp_path: Path):
    first = [("train_begin", 0), ("evaluate", 0), ("epoch_begin", 0), ("step_end", 1), ("step_end", 2)]
    second = [("evaluate", 2), ("step_end", 3), ("epoch_end", 3), ("save", 3), ("epoch_begin", 3)]
    third = [("step_end", 4), ("log", 4), ("evaluate", 4), ("step_end", 5), ("step_end", 6), ("log", 6)]
    last = [("epoch_end", 6), ("evaluate", 6), ("save", 6), ("train_end", 6)]
    assert reported(tmp_path, eval_steps=2, save_steps=3) == [*first, *second, *third, *last]


def test_what_callbacks_ask_for_happens_before_the_next_step(tmp_path: Path):
    """Also what is asked for in an evaluation, as early stopping does; a flag that is due can be taken down."""
    asks = {
        ("step_end", 1): "should_evaluate",
        ("step_end", 2): "should_log",
        ("step_end", 3): "not should_save",
        ("evaluate", 1): "should_save",
        ("step_end", 4): "should_evaluate",
        ("evaluate", 4): "should_training_stop",
    }
    calls = reported(tmp_path, asks, save_steps=3, logging_steps=100)
    expected = [("step_end", 1), ("evaluate", 1), ("save", 1), ("step_end", 2), ("log", 2), ("step_end", 3)]
    expected += [("epoch_end", 3), ("epoch_begin", 3), ("step_end", 4), ("evaluate", 4)]
    expected += [("epoch_end", 4), ("train_end", 4)]
    assert calls[3:] == expected
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl") if "loss" in row] == [1, 2, 3, 4]


def test_a_run_that_fails_closes_its_callbacks_and_does_not_say_that_it_ended(tmp_path: Path):
    run = run_of(Case("llama", rows=12), SingleDevice(CPU), tmp_path, faults=Faults(), retry_smaller=False)
    recorder = Recorder()
    run.callbacks = [recorder]
    run.strategy.update = lambda *_: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        fit(run)
    assert recorder.closed == 1
    assert ("train_end", 0) not in recorder.reported


def test_a_checkpoint_written_beside_the_training_is_told_of_when_it_is_there(tmp_path: Path):
    """Not only at the next save or the end."""
    run = run_of(Case("llama", rows=12), SingleDevice(CPU), tmp_path, steps=3, save_steps=1, save_in_background=True)
    seen: list[str] = []

    class Told(Callback):
        def on_save(self, state: Any, control: Any, folder: Path) -> None:
            assert (folder / "manifest.json").is_file()
            seen.append(folder.name)

    run.callbacks = [Told()]
    fit(run)
    assert seen == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]


@pytest.mark.skipif(os.name == "nt", reason="no SIGHUP")
def test_a_lost_connection_is_a_request_to_stop_but_not_under_nohup():
    before = signal.getsignal(signal.SIGHUP)
    try:
        for ours, expected in ((signal.SIG_DFL, "SIGHUP"), (signal.SIG_IGN, None)):
            signal.signal(signal.SIGHUP, ours)
            with SignalFlags() as signals:
                os.kill(os.getpid(), signal.SIGHUP)
                assert signals.stop == expected
            assert signal.getsignal(signal.SIGHUP) is ours
    finally:
        signal.signal(signal.SIGHUP, before)


_ALONE = """
import os, signal, sys
from ai_finetuning.engine.hooks import SignalFlags
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
with SignalFlags() as signals:
    print("ready", flush=True)
    while signals.stop is None:
        pass
    print("3/150", flush=True)
    print("saved", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write(signals.stop)
"""


@pytest.mark.skipif(os.name == "nt", reason="no pseudo-terminals")
def test_a_run_whose_terminal_is_closed_can_still_speak(tmp_path: Path):
    """Its next line would end it with an OSError, before it has saved."""
    import pty

    ours, theirs = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", _ALONE, str(tmp_path / "end")], stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    run.send_signal(signal.SIGHUP)
    assert run.wait(60) == 0
    assert (tmp_path / "end").read_text(encoding="utf-8") == "SIGHUP"
