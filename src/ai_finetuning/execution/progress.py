"""Progress for people: a rich bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from ..engine.hooks import Callback, Control
from ..engine.train_state import TrainState
from ..messages import notice, speak
from ..parallel.processes import launched


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


def _numbers(row: dict[str, Any], speed: float) -> str:
    return f"loss {row['loss']:.4f}  lr {row['learning_rate']:.2e}  {speed:,.0f} tok/s"


def _evaluation(row: dict[str, Any]) -> tuple[str, str]:
    bits = row.get("eval_bits_per_character")
    more = f", bpc {bits:.3f}" if bits is not None else ""
    numbers = f"{row['eval_loss']:.4f} (ppl {row['eval_perplexity']:.2f}{more})"
    return f"ステップ {row['step']} 評価損失 {numbers}", f"step {row['step']} evaluation loss {numbers}"


class Lines(Callback):
    """One line every logging_steps, for logs and notebooks."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._speed = _Speed()
        self._before: int | None = None  # steps that were done before this process began

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Reports the progress of the run."""
        speed = self._speed.add(row)
        self._before = row["step"] - 1 if self._before is None else self._before
        if row["step"] % self._every and row["step"] != row["total_steps"]:
            return
        left = (row["total_steps"] - row["step"]) * row["seconds"] / (row["step"] - self._before)
        text = f"{row['step']}/{row['total_steps']}  {_numbers(row, speed)}"
        notice(f"{text}  残り約 {left:.0f} 秒", f"{text}  about {left:.0f} s left")

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Reports the evaluation loss."""
        notice(*_evaluation(row))


class Bar(Callback):
    """A rich progress bar with loss, learning rate, tokens/s and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task: Any = None
        self._speed = _Speed()

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Moves the bar."""
        speed = self._speed.add(row)
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("", total=row["total_steps"])
        self._progress.update(self._task, completed=row["step"], description=_numbers(row, speed))

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Prints the evaluation loss above the bar."""
        notice(*_evaluation(row))

    def close(self) -> None:
        """Leaves the bar where it is."""
        self._progress.stop()


def progress(every: int) -> Callback:
    """The bar in a terminal, else lines."""
    return Bar() if sys.stderr.isatty() else Lines(every)
