"""The progress of a run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class TrainState:
    """The progress of a run; part of every checkpoint."""

    micro_batch_size: int
    step: int = 0
    epoch: int = 0
    index: int = 0
    tokens: int = 0
    skipped: int = 0
    bad_in_a_row: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    stale_evaluations: int = 0
    loss_mean: float = 0.0
    loss_square: float = 0.0
    eval_batch_size: int = 0
