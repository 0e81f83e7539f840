"""The disk that a run needs, and whether it has room for the best weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..config.training import TrainingConfig
from ..planner import memory
from .output_folder import free_disk_bytes


@dataclass(frozen=True)
class Disk:
    """Bytes.

    Attributes:
        needed: the most that the run has on disk at a time.
        free: where it writes.
        keeps_best: whether the weights of the best evaluation are kept, and counted.
    """

    needed: int
    free: int
    keeps_best: bool


def disk_of(training: TrainingConfig, work: memory.Workload, *, model_bytes: int, evaluates: bool) -> Disk:
    """What a run needs; best weights that it has to load at its end are counted without asking for room.

    Args:
        model_bytes: of the final model or adapter.
        evaluates: the run has evaluation data.
    """
    options, free = training.checkpoint, free_disk_bytes(Path(training.output_dir))
    needed = memory.disk_bytes(
        work.trainable,
        kept=options.save_total_limit,
        model_bytes=model_bytes,
        optimizer_bytes=0 if training.save_only_model else work.optimizer_bytes,
    )
    best = memory.best_bytes(work.trainable, model_bytes=model_bytes)
    keeps_best = evaluates and (options.load_best or (options.keep_best and needed + best <= free))
    return Disk(needed + best * keeps_best, free, keeps_best)
