"""Progress for people: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from ..engine.hooks import Callback, Control
from ..engine.train_state import TrainState
from ..errors import Reason, localized
from ..messages import notice, speak
from ..parallel.processes import launched
from ..planner.speed import STEPS_BEFORE, Clock, Remaining, duration

# A log in which nothing comes for longer looks like a run that hangs.
QUIET_SECONDS = 30.0
_PREPARING = Reason("モデルを準備しています", "preparing the model")


@contextlib.contextmanager
def speaking_main_process() -> Iterator[None]:
    """Of several processes only the main one talks."""
    speak(only_errors=not launched().is_main)
    try:
        yield
    finally:
        speak(only_errors=False)


class _Speed:
    """Tokens a second over the rows seen last."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, int]] = []

    def add(self, row: dict[str, Any]) -> float:
        self._seen = [*self._seen[-50:], (row["seconds"], row["tokens"])]
        (start, before), (stop, after) = self._seen[0], self._seen[-1]
        return (after - before) / (stop - start) if stop > start else 0.0


def _speed_text(speed: float) -> str:
    """Empty where one row alone was seen, which tells no speed."""
    return f"  {speed:,.0f} " + localized("トークン/秒", "tok/s") if speed else ""


def _evaluation(row: dict[str, Any]) -> tuple[str, str]:
    loss, bits, right = row["eval_loss"], row.get("eval_bits_per_character"), row.get("eval_rewards/accuracies")
    more = f", bpc {bits:.3f}" if bits is not None else ""
    ja = en = f" (ppl {row['eval_perplexity']:.2f}{more})" if "eval_perplexity" in row else ""
    if right is not None:
        ja, en = f"（良い回答が上回る組 {right:.1%}）", f" (better answers win in {right:.1%})"
    return f"ステップ {row['step']} 評価損失 {loss:.4f}{ja}", f"step {row['step']} evaluation loss {loss:.4f}{en}"


class Heartbeat:
    """Says, from a thread of its own, what is going on whenever nothing was said for QUIET_SECONDS.

    Args:
        doing: what is going on, for the line.
        clock: seconds from anywhere.
    """

    def __init__(self, doing: Reason, clock: Clock = time.monotonic) -> None:
        self._clock, self._doing = clock, doing
        self._since = self._said = clock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def now(self, doing: Reason) -> None:
        """Something else is going on from now on."""
        self._doing, self._since = doing, self._clock()

    def said(self) -> None:
        """A line was written."""
        self._said = self._clock()

    def due(self) -> bool:
        """Whether nothing was written for so long that a line is due."""
        return self._clock() - self._said >= QUIET_SECONDS

    def beat(self) -> None:
        """Writes the line, if it is due."""
        if not self.due():
            return
        self.said()
        taken = duration(self._clock() - self._since)
        notice(f"{self._doing.ja}（{taken}経過）", f"{self._doing.en} (for {taken})")

    def start(self) -> None:
        """Begins to watch the time."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="aift-heartbeat", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Ends it."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(max(0.05, QUIET_SECONDS - (self._clock() - self._said))):
            self.beat()


@contextlib.contextmanager
def saying_that_it_prepares() -> Iterator[None]:
    """Lines while a model is loaded, where that takes long."""
    beat = Heartbeat(_PREPARING)
    if launched().is_main:
        beat.start()
    try:
        yield
    finally:
        beat.close()


class Lines(Callback):
    """One line every logging_steps and at least every half minute, for logs and notebooks.

    Args:
        every: steps between lines.
        eval_every: steps between evaluations; None without any.
    """

    def __init__(self, every: int, eval_every: float | None = None, clock: Clock = time.monotonic) -> None:
        self._every, self._seen = every, 0
        self._speed = _Speed()
        self._remaining = Remaining(eval_every, clock)
        self._beat = Heartbeat(_working_on(1), clock)

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """Looks at the clock from now on."""
        self._remaining.begin()
        self._beat.now(_working_on(state.step + 1))
        self._beat.start()

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Reports the progress of the run."""
        speed = self._speed.add(row)
        self._remaining.step(row)
        self._beat.now(_working_on(row["step"] + 1))
        self._seen += 1
        last = row["step"] == row["total_steps"]
        if row["step"] % self._every and not last and self._seen != STEPS_BEFORE and not self._beat.due():
            return
        self._beat.said()
        numbers = f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}{_speed_text(speed)}"
        left = "" if last else f"  {self._remaining.text()}".rstrip()
        line = f"{row['step']}/{row['total_steps']}  {numbers}{left}"
        notice(line, line)

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Reports the evaluation loss."""
        self._remaining.evaluated()
        self._beat.now(_working_on(row["step"] + 1))
        self._beat.said()
        notice(*_evaluation(row))

    def close(self) -> None:
        """Ends the watch over the clock."""
        self._beat.close()


def _working_on(step: int) -> Reason:
    """What is done after a step: the next one, or an evaluation before it."""
    return Reason(f"ステップ {step} を計算しています", f"working on step {step}")


class Bar(Callback):
    """A rich progress bar with loss, tokens a second and the time left."""

    def __init__(self, eval_every: float | None = None, clock: Clock = time.monotonic) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._progress = Progress(
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._speed = _Speed()
        self._remaining = Remaining(eval_every, clock)

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """Looks at the clock from now on."""
        self._remaining.begin()

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Moves the bar."""
        speed = self._speed.add(row)
        self._remaining.step(row)
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=row["total_steps"])
        text = f"loss {row['loss']:.4f}{_speed_text(speed)}  {self._remaining.text()}".rstrip()
        self._progress.update(self._task, completed=row["step"], description=text)

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Prints the evaluation loss above the bar."""
        self._remaining.evaluated()
        notice(*_evaluation(row))

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._progress.stop()


def progress(every: int, eval_every: float | None = None) -> Callback:
    """The bar in a terminal, else lines.

    Args:
        every: steps between lines.
        eval_every: steps between evaluations; None without any.
    """
    return Bar(eval_every) if sys.stderr.isatty() else Lines(every, eval_every)
