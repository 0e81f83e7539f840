"""What a run gave."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..engine.train_state import TrainState


@dataclass
class Result:
    """What a run gave.

    Attributes:
        model: the trained module, in eval mode.
        folder: where it is saved.
        state: where the loop ended; None where a completed run was only loaded.
        step_of_weights: the step that these weights are of, where it is not the last.
        history: rows of metrics.jsonl.
        seconds: of the loop.
        peak_memory_bytes: of the process or the GPU.
        saved_step: whose weights these are; None: those of the last step.
    """

    model: nn.Module
    folder: Path
    state: TrainState | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_bytes: int = 0
    saved_step: int | None = None
