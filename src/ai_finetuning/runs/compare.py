"""Several runs beside each other: the settings in which they differ, how they ended, and their curves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.load import load_config
from ..config.plain import plain_run
from ..config.run_folder import CONFIG, METRICS
from ..errors import ToolkitError
from ..system.files import is_plain
from .folder import recorded_settings
from .rows import loss_of, rows_of, step_of

# Settings that differ between any two runs and say nothing of them.
_OWN = frozenset(("training.output_dir", "training.checkpoint.resume_from_checkpoint"))
# Points of a curve: beyond, two for every bucket of steps, its lowest and its highest.
POINTS = 2000
# Bytes of a metrics file that are read, which is some 200,000 steps.
_MOST = 64 << 20

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other; every list has one item a run, in the order in which they were named.

    Attributes:
        settings: by dotted name, those that differ; None where a run does not have one.
        loss, eval_loss: (step, nats per token), in order; at most 2,000 points a curve.
    """

    settings: dict[str, list[Any]]
    loss: list[Curve]
    eval_loss: list[Curve]


def compare(folders: Sequence[Path]) -> Comparison:
    """Runs beside each other, by their folders."""
    settings = [dict(_flat(_settings(folder))) for folder in folders]
    names = sorted({name for values in settings for name in values} - _OWN)
    differing = {name: [values.get(name) for values in settings] for name in names}
    curves = [_curves(folder / METRICS) for folder in folders]
    return Comparison(
        {name: values for name, values in differing.items() if any(value != values[0] for value in values)},
        [curve for curve, _ in curves],
        [curve for _, curve in curves],
    )


def _settings(folder: Path) -> Mapping[str, Any]:
    """All settings of a run, those that it left to their defaults too; what is written, where that is refused today."""
    try:
        return plain_run(load_config(folder / CONFIG))
    except (ToolkitError, OSError):
        return recorded_settings(folder)


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _curves(file: Path) -> tuple[Curve, Curve]:
    """Losses of the steps and of the evaluations."""
    rows = []
    try:
        if is_plain(file):
            with file.open("rb") as stream:
                rows = rows_of(stream.read(_MOST))
    except OSError:
        pass
    return _curve(rows, "loss"), _curve(rows, "eval_loss")


def _curve(rows: Sequence[dict[str, Any]], name: str) -> Curve:
    points = ((step_of(row.get("step")), loss_of(row.get(name))) for row in rows)
    return thinned([(step, loss) for step, loss in points if step is not None and loss is not None])


def thinned(points: Curve, most: int = POINTS) -> Curve:
    """A curve as it is, or the lowest and the highest point of each of most / 2 buckets of equally many points."""
    if len(points) <= most:
        return points
    buckets, kept = most // 2, []
    for at in range(buckets):
        bucket = points[at * len(points) // buckets : (at + 1) * len(points) // buckets]
        low, high = (choose(bucket, key=lambda point: point[1]) for choose in (min, max))
        kept += sorted({low, high})
    return kept
