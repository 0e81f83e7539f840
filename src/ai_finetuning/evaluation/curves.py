"""The loss curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def _smooth(values: Sequence[float], keep: float = 0.9) -> list[float]:
    """Exponential mean without the bias of its beginning."""
    mean, weight, smooth = 0.0, 0.0, []
    for value in values:
        mean, weight = keep * mean + (1 - keep) * value, keep * weight + (1 - keep)
        smooth.append(mean / weight)
    return smooth


def draw_bars(groups: dict[str, dict[str, float]], path: Path) -> None:
    """One panel for each measure, one bar for each method, as PNG.

    Args:
        groups: measure -> method -> value.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 * len(groups), 3.2), layout="constrained")
    for axes, (measure, values) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        bars = axes.bar(list(values), list(values.values()), color=["#08519c", "#d94801", "#31a354"][: len(values)])
        axes.bar_label(bars, fmt="%.3g")
        axes.set_title(measure)
        axes.margins(y=0.15)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))


def draw_curve(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Training and evaluation loss over the steps, as PNG; works without a display and without Japanese fonts."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [row for row in history if row.get("loss") is not None]
    scored = [row for row in history if row.get("eval_loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    x, y = [row["step"] for row in steps], [row["loss"] for row in steps]
    axes.plot(x, y, color="#9ecae1", linewidth=0.8, label="train loss")
    axes.plot(x, _smooth(y), color="#08519c", linewidth=1.6, label="train loss (smoothed)")
    if scored:
        axes.plot(
            [row["step"] for row in scored],
            [row["eval_loss"] for row in scored],
            "o-",
            color="#d94801",
            label="evaluation loss",
        )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))
