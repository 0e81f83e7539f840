"""What a run tells other programs while it trains, and what they may ask of it: its phase, and a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.hooks import Callback, Control
from ..engine.train_state import TrainState
from ..messages import notice
from ..runs.phase import tell_phase
from ..runs.stop import take_stop


class Followed(Callback):
    """Writes the phase into run.json, and looks for `stop.request` before the first step and after each one.

    The last callback of the main process: what the others ask for after a step is known by then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._best_later = False

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """The first step or evaluation comes."""
        self._look(control, untrained=state.step == 0)
        tell_phase(self._folder, "evaluation" if control.should_evaluate else "training")

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """One question to the file system."""
        if self._best_later:
            self._best_later = False
            self._end_with_best(control)
        self._look(control)
        if control.should_evaluate:
            tell_phase(self._folder, "evaluation")

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Steps go on."""
        tell_phase(self._folder, "training")

    def _look(self, control: Control, *, untrained: bool = False) -> None:
        how = take_stop(self._folder)
        if how is None:
            return
        if how == "now":
            control.should_leave = True
        elif how == "save":
            control.should_interrupt = True
        elif untrained:
            self._best_later = True  # a model that has learnt nothing is no result
        else:
            self._end_with_best(control)
        notice(f"停止の指示（{how}）を受け付けました。", f"asked to stop ({how}).")

    def _end_with_best(self, control: Control) -> None:
        """The weights of this step may be better than those of the last evaluation."""
        control.should_training_stop = control.should_evaluate = control.should_return_best = True
