"""The parts of a run, and its progress."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..parallel.batch import Batch
from ..parallel.strategy import Strategy
from .checkpoint.background import CheckpointWriter
from .checkpoint.store import CheckpointStore
from .faults import Faults
from .hooks import Callback, Control
from .predictions import Predictions
from .preference_loss import PreferenceLoss
from .schedule import Schedule
from .train_state import TrainState


class LoaderLike(Protocol):
    """What the loop knows of the data."""

    def steps(self, epoch: int) -> int:
        """Optimizer steps in an epoch."""

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        """This rank's batches of one optimizer step; a pure function of its arguments and the seed."""

    def other_answers(self, epoch: int, index: int, micro_batch_size: int) -> Sequence[Batch]:
        """The same questions, each with the answer to another one."""

    def position(self, epoch: int, index: int) -> dict[str, Any] | None:
        """What a checkpoint has to hold of the data beside the numbers of the next step, as JSON; None for nothing."""

    def go_to(self, epoch: int, index: int, position: Mapping[str, Any] | None) -> None:
        """Goes on with a step whose position is known; ValueError or KeyError where it is none."""

    def behind(self, steps: int) -> tuple[int, int]:
        """(epoch, step of it) behind so many steps of a run."""


@dataclass
class Evaluation:
    """Evaluation data: batches for a batch size, the characters of the scored text (None where unknown), what collects
    predictions for the user's own metrics (None where there are none), and the questions with the answers to others (None
    where nothing asks for them).
    """

    batches: Callable[[int], Sequence[Batch]]
    characters: int | None
    predictions: Predictions | None = None
    others: Callable[[int], Sequence[Batch]] | None = None


@dataclass
class Run:
    """Everything the loop works with; put together once, in execution/build.py."""

    model: nn.Module
    strategy: Strategy
    loader: LoaderLike
    optimizer: torch.optim.Optimizer
    state: TrainState
    store: CheckpointStore
    metrics_path: Path | None
    total_steps: int
    schedule: Schedule = Schedule()
    max_grad_norm: float = 1.0
    logging_steps: int = 10
    eval_steps: int = 100
    save_steps: int = 500
    evals_per_epoch: int | None = None
    saves_per_epoch: int | None = None
    save_only_model: bool = False
    evaluation: Evaluation | None = None
    keep_best_from: int | None = None  # the first step whose weights are kept where its evaluation is the best
    patience: int | None = None
    threshold: float = 0.0
    save_in_background: bool = True
    retry_smaller: bool = True
    fingerprint: dict[str, Any] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict)
    callbacks: Sequence[Callback] = ()
    faults: Faults = field(default_factory=Faults)
    preference: PreferenceLoss | None = None  # the strategy's loss, where pairs or marked answers are trained on
    memory_hint_ja: str = ""
    memory_hint_en: str = ""

    def __post_init__(self) -> None:
        self.control = Control()
        self.return_best = False  # as the run's result, asked for while it trained
        self.in_step = False  # between the beginning of a step and its end, when weights and counters may not agree
        self.writer = CheckpointWriter(self.store, background=self.save_in_background, on_saved=self._tell_saved)

    def due(self, steps: int, per_epoch: int | None) -> bool:
        """Whether something is due at the step that has just ended: every so many steps, or so many times in each
        epoch, behind the steps ceil(k * steps of an epoch / times).
        """
        if per_epoch is None:
            return self.state.step % steps == 0
        size = self.loader.steps(self.state.epoch - (self.state.index == 0))  # of the epoch of that step
        done = self.state.index or size
        return done * per_epoch // size > (done - 1) * per_epoch // size

    def tell(self, event: str, *details: Any) -> None:
        """Calls the method of that name of every callback."""
        for callback in self.callbacks:
            getattr(callback, event)(self.state, self.control, *details)

    def _tell_saved(self, folder: Path) -> None:
        self.tell("on_save", folder)
