"""The learning rate over the steps, as a pure function, and the rules for the warm-up."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ConfigError
from ..messages import notice, warn

# A share of the steps above which a warm-up is probably a mistake.
_MUCH = 0.3


@dataclass(frozen=True)
class Schedule:
    """How the learning rate moves.

    Attributes:
        shape: a key of SHAPES.
        warmup: steps of linear rise.
        floor: where cosine and wsd end, as a share of the peak.
        decay: share of the steps after the warm-up in which wsd falls.
    """

    shape: str = "linear"
    warmup: int = 0
    floor: float = 0.0
    decay: float = 0.2


def _linear(progress: float, _: Schedule) -> float:
    return 1.0 - progress


def _cosine(progress: float, schedule: Schedule) -> float:
    return schedule.floor + (1.0 - schedule.floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(progress: float, _: Schedule) -> float:
    return 1.0


def _wsd(progress: float, schedule: Schedule) -> float:
    left = min(1.0, (1.0 - progress) / schedule.decay)
    return schedule.floor + (1.0 - schedule.floor) * left


SHAPES: dict[str, Callable[[float, Schedule], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "constant": _constant,
    "wsd": _wsd,
}


def lr_factor(step: int, schedule: Schedule, *, total: int) -> float:
    """What the peak learning rate is multiplied by at a step (counted from 0) of `total`."""
    if step < schedule.warmup:
        return (step + 1) / (schedule.warmup + 1)
    progress = (step - schedule.warmup) / max(1, total - schedule.warmup)
    return SHAPES[schedule.shape](min(progress, 1.0), schedule)


def warmup_of_ratio(ratio: float, total_steps: int) -> int:
    """The warm-up of a share of the steps, rounded up as transformers' `warmup_ratio` is; one step at least stays at
    the full learning rate. Warned about above 30 %.
    """
    if ratio > _MUCH:
        warn(
            f"training.schedule.warmup_ratio が {ratio} です。通常は 0.03〜0.1 です。",
            f"training.schedule.warmup_ratio is {ratio}; 0.03 - 0.1 is usual.",
        )
    # Rounded first: 0.07 of 100 steps is 7.000000000000001 in floating point.
    return min(total_steps - 1, math.ceil(round(ratio * total_steps, 6)))


def resolve_warmup(warmup_steps: int, *, explicitly_set: bool, total_steps: int) -> int:
    """The warm-up in force.

    The untouched default of 100 is capped at a tenth of the steps. A value that the user set is kept,
    warned about above 30 % of the steps and refused from the total on.

    Raises:
        ConfigError: for a warm-up of the user's that leaves no step at the full learning rate.
    """
    if not explicitly_set:
        capped = min(warmup_steps, total_steps // 10)
        if capped < warmup_steps:
            notice(
                f"warmup_steps は既定の {warmup_steps} から {capped} に抑えました（全 {total_steps} ステップの 1 割）。",
                f"warmup_steps: the default of {warmup_steps} is capped at {capped} (a tenth of {total_steps} steps).",
            )
        return capped
    if warmup_steps >= total_steps:
        raise ConfigError(
            f"training.warmup_steps が {warmup_steps} ですが、全体が {total_steps} ステップしかありません。"
            f"{max(1, total_steps // 10)} 以下にしてください。",
            f"training.warmup_steps is {warmup_steps}, but the run has only {total_steps} steps; use "
            f"{max(1, total_steps // 10)} or fewer.",
        )
    if warmup_steps > _MUCH * total_steps:
        warn(
            f"training.warmup_steps が {warmup_steps} で、全 {total_steps} ステップの {warmup_steps / total_steps:.0%} です。"
            "通常は 3〜10 % です。",
            f"training.warmup_steps is {warmup_steps}, {warmup_steps / total_steps:.0%} of {total_steps} steps; "
            "3-10 % is usual.",
        )
    return warmup_steps
