"""What the loop listens to and talks to: signals and callbacks."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from ..errors import localized
from ..parallel.processes import STORE, launched
from .train_state import TrainState


class Request(NamedTuple):
    """Requests to the loop between two steps; the processes of a run agree on it before they act.

    Attributes:
        interrupt: save and leave the run unfinished, to continue later (SIGTERM, SIGINT, or asked from outside).
        stop: training is done.
        save: take a checkpoint.
        evaluate: run the evaluation.
        keep_best: keep the weights as the best ones so far.
        best: the run's result are the best weights, whatever its settings say.
        leave: leave the run unfinished without saving.
    """

    interrupt: bool = False
    stop: bool = False
    save: bool = False
    evaluate: bool = False
    keep_best: bool = False
    best: bool = False
    leave: bool = False


NOTHING = Request()


@dataclass
class Control:
    """Requests of callbacks, under transformers' names where it has one. A flag that any rank raises counts on all of them; it is
    taken down when it has been read, after the step in which it was raised.

    The loop raises a flag itself where the configuration says so, before it calls on_step_end; a callback may take
    that down again, if it does so on every rank.
    """

    should_training_stop: bool = False
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False
    should_keep_best: bool = False
    should_interrupt: bool = False
    should_return_best: bool = False
    should_leave: bool = False


class Callback:
    """Listens to a run on its rank and may ask for something by `control`; every method may be left out.

    `row` is a row of metrics.jsonl. Callbacks of several ranks are called at the same steps.
    """

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """Before the first step, of a resumed run too."""

    def on_epoch_begin(self, state: TrainState, control: Control) -> None:
        """Before the first step of an epoch, or of what a resumed run has left of one."""

    def on_step_begin(self, state: TrainState, control: Control) -> None:
        """Before every optimizer step."""

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """After every optimizer step, with its row."""

    def on_log(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """After on_step_end, every logging_steps and where should_log was raised."""

    def on_epoch_end(self, state: TrainState, control: Control) -> None:
        """After the last step of an epoch, or of the run."""

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """After every evaluation, with its row; `state` still holds the best loss before it."""

    def on_save(self, state: TrainState, control: Control, folder: Path) -> None:
        """After every checkpoint, as soon as it is written; training may be some steps further by then."""

    def on_train_end(self, state: TrainState, control: Control) -> None:
        """When training is done; not where it was interrupted or has failed."""

    def close(self) -> None:
        """When the loop is left, also by an error."""


class SignalFlags:
    """SIGTERM, SIGHUP and the first SIGINT ask for a stop at the step's end, SIGUSR1 for a checkpoint; a second SIGINT
    aborts.

    A request to stop is answered at once, since a step may take long; of several processes one answers.
    Handlers exist only inside the `with` block, and only in the main thread (Python allows them nowhere else).
    """

    def __init__(self) -> None:
        self.stop: str | None = None
        self.save = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is threading.main_thread():
            handlers = {
                "SIGTERM": self._ask_stop,
                "SIGINT": self._ask_stop,
                "SIGHUP": self._ask_stop,  # the terminal is closed, or the connection to it lost
                "SIGUSR1": self._ask_save,
            }
            for name, handler in handlers.items():
                number = getattr(signal, name, None)
                if number is None or (name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN):
                    continue  # under nohup a run goes on without its terminal
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask_stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.stop == "SIGINT":
            raise KeyboardInterrupt
        if number == getattr(signal, "SIGHUP", None):
            _without_terminal()
        if self.stop is None:
            _answer(number)
        self.stop = signal.Signals(number).name

    def _ask_save(self, number: int, frame: FrameType | None) -> None:
        self.save = True


def _without_terminal() -> None:
    """Where the terminal is gone, what the run still says goes nowhere: a line of progress must not end it."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream)
                os.close(nowhere)


def _answer(number: int) -> None:
    """Says that a request to stop has arrived: by one system call, since the signal may have come while something else
    was being printed.
    """
    if STORE in os.environ or not launched().is_main:
        return  # of a run whose starter, or whose first process, says it
    if number == signal.SIGINT:
        text = localized(
            "中断を受け付けました。このステップの後で保存して止まります（もう一度押すとすぐ止まります）",
            "interrupting: saving after this step and stopping (press again to stop at once)",
        )
    else:
        name = signal.Signals(number).name
        text = localized(
            f"{name} を受け付けました。このステップの後で保存して止まります",
            f"{name} received: saving after this step and stopping",
        )
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    with contextlib.suppress(OSError):
        os.write(2, f"\n[aift] {text}\n".encode(encoding, errors="replace"))


def take_request(control: Control, signals: SignalFlags) -> Request:
    """What this process asks for; flags are taken down, a stop by a signal stays."""
    request = Request(
        interrupt=signals.stop is not None or control.should_interrupt,
        stop=control.should_training_stop,
        save=control.should_save or signals.save,
        evaluate=control.should_evaluate,
        keep_best=control.should_keep_best,
        best=control.should_return_best,
        leave=control.should_leave,
    )
    signals.save = control.should_training_stop = control.should_save = control.should_evaluate = False
    control.should_keep_best = control.should_interrupt = control.should_return_best = control.should_leave = False
    return request
