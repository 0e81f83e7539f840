"""The loss curve of a run: as a drawing inside a page, and as a picture."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Reason, localized
from .figures import compares_answers
from .verdict import Point, figure

# Points of a line; more than a screen is wide, and as many as a page can hold of a run of a million steps.
MOST_POINTS = 400
# Families that have Japanese characters, as systems name them.
_JAPANESE = ("Noto Sans CJK JP", "Noto Sans JP", "IPAexGothic", "IPAGothic", "Hiragino Sans", "Yu Gothic", "Meiryo", "BIZ UDGothic", "MS Gothic", "TakaoPGothic", "VL Gothic")  # fmt: skip
_STEP = Reason("ステップ", "optimizer step")
_LOSS = Reason("損失（トークンあたり nat）", "loss (nats per token)")
_RAW, _SMOOTH = Reason("学習損失", "training loss"), Reason("学習損失（平滑化）", "training loss (smoothed)")
_EVAL, _BEST = Reason("評価損失", "evaluation loss"), Reason("最良の評価", "best evaluation")
_OF_ANSWERS = Reason("損失（回答の組、または印の付いた回答あたり）", "loss (a pair, or a marked answer)")
# Of a run over answers: key, what stands at the axis, and above the drawing.
_SHARE = Reason("割合", "share of pairs")
MORE = (
    (
        "rewards/accuracies",
        _SHARE,
        Reason("良い回答の報酬が上回る組", "Pairs whose better answer has the higher reward"),
    ),
    (
        "rewards/margins",
        Reason("報酬の差", "margin of the rewards"),
        Reason("報酬の差（良い回答 − 悪い回答）", "Margin of the rewards (better - worse)"),
    ),
    (
        "logps/chosen",
        Reason("対数確率（nat）", "log-probability (nats)"),
        Reason("良い回答の対数確率", "Log-probability of the better answers"),
    ),
)


@dataclass(frozen=True)
class Curve:
    """The losses of a run.

    Attributes:
        raw, smooth: training loss by step, thinned to MOST_POINTS.
        evaluations: those that are numbers.
        axis: what is drawn.
        key: of the rows.
    """

    raw: list[Point] = field(default_factory=list)
    smooth: list[Point] = field(default_factory=list)
    evaluations: list[Point] = field(default_factory=list)
    axis: Reason = _LOSS
    key: str = "loss"

    @property
    def best(self) -> Point | None:
        """The lowest evaluation loss; the first of equal ones."""
        if self.key != "loss":
            return None
        return min(self.evaluations, key=lambda point: point.loss, default=None)


def curve_of(history: Sequence[dict[str, Any]], key: str = "loss", axis: Reason | None = None) -> Curve:
    """The curve of the rows of metrics.jsonl.

    Steps are smoothed by their label tokens: the last step of an epoch has few rows, and its loss would pull the line as
    strongly as that of a whole one.

    Args:
        key: of the training rows; evaluations have it behind `eval_`.
        axis: what it is; None for the loss.
    """
    rows = [row for row in history if _number(row.get(key))]
    steps = [row["step"] for row in rows]
    smooth = _smooth([row[key] for row in rows], [row.get("label_tokens") or 1 for row in rows])
    scored = f"eval_{key}"
    return Curve(
        raw=_thinned([Point(row["step"], row[key]) for row in rows]),
        smooth=_thinned([Point(*pair) for pair in zip(steps, smooth, strict=True)]),
        evaluations=[Point(row["step"], row[scored]) for row in history if _number(row.get(scored))],
        axis=axis or (_OF_ANSWERS if compares_answers(history) else _LOSS),
        key=key,
    )


def more_curves(history: Sequence[dict[str, Any]]) -> list[tuple[Reason, Curve]]:
    """(title, curve) of what else a run over answers has."""
    curves = [(title, curve_of(history, key, axis)) for key, axis, title in MORE]
    return [(title, curve) for title, curve in curves if curve.raw or curve.evaluations]


def _number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _smooth(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Exponential mean without the bias of its beginning, over about ten values; over a tenth of them in a short run, where
    the line would lag behind.
    """
    keep = 1 - 1 / min(10.0, max(1.0, len(values) / 10))
    mean, weight, smooth = 0.0, 0.0, []
    for value, share in zip(values, weights, strict=True):
        part = (1 - keep) * max(share, 1)
        mean, weight = keep * mean + part * value, keep * weight + part
        smooth.append(mean / weight)
    return smooth


def _thinned(points: Sequence[Point]) -> list[Point]:
    """The means of equal stretches, the last point among them as it is."""
    size = math.ceil(len(points) / MOST_POINTS) or 1
    if size == 1:
        return list(points)
    stretches = [points[start : start + size] for start in range(0, len(points) - 1, size)]
    means = [Point(part[len(part) // 2].step, sum(item.loss for item in part) / len(part)) for part in stretches]
    return [*means, points[-1]]


# Of the drawing, in its own units: whole, and what axes and their numbers take at the left, right, top and bottom.
_WIDTH, _HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 20, 38


@dataclass(frozen=True)
class _Axes:
    """From steps and losses to places in the drawing."""

    steps: int
    low: float
    high: float

    def x(self, step: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * step / max(1, self.steps)

    def y(self, loss: float) -> float:
        share = (loss - self.low) / (self.high - self.low)
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * min(1.1, max(-0.1, share))

    def line(self, points: Sequence[Point]) -> str:
        """The `points` of a polyline."""
        return " ".join(f"{self.x(point.step):.1f},{self.y(point.loss):.1f}" for point in points)


def svg(curve: Curve, total_steps: int) -> str:
    """The curve as a drawing for a page in the user's language: it takes the colours of the page's style, no script and no
    font of its own. Empty without a single point.

    Args:
        total_steps: of the whole run, so that the drawing of a run at work shows how far it is.
    """
    levels = [point.loss for points in (curve.smooth, curve.evaluations) for point in points]
    if not levels:
        return ""
    # A first step far above the others would press the rest flat: single steps may leave the drawing.
    ordered = sorted(point.loss for point in curve.raw)
    inside = ordered[len(ordered) // 50 : len(ordered) - len(ordered) // 50]
    ticks = _ticks(min([*levels, *inside]), max([*levels, *inside]))
    axes, clip = _Axes(total_steps, min(ticks), max(ticks)), f"inside-{curve.key.replace('/', '-')}"
    parts = [
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(_name(curve))}">',
        f'<clipPath id="{clip}"><rect x="{_LEFT}" y="{_TOP}" width="{_WIDTH - _LEFT - _RIGHT}" '
        f'height="{_HEIGHT - _TOP - _BOTTOM}"/></clipPath>',
    ]
    for tick in ticks:
        y = axes.y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(tick)}</text>')
    for step in _whole_ticks(total_steps):
        parts.append(f'<text x="{axes.x(step):.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{step:,}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts += [
        f'<text x="{middle:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">{html.escape(str(_STEP))}</text>',
        f'<text x="4" y="12">{html.escape(str(curve.axis))}</text>',
        f'<g clip-path="url(#{clip})"><polyline class="raw" points="{axes.line(curve.raw)}"/>'
        f'<polyline class="smooth" points="{axes.line(curve.smooth)}"/></g>',
        f'<polyline class="evaluation" points="{axes.line(curve.evaluations)}"/>',
        *(
            f'<circle class="point" cx="{axes.x(point.step):.1f}" cy="{axes.y(point.loss):.1f}" r="3"/>'
            for point in curve.evaluations
        ),
        *_marked(curve.best, axes),
        "</svg>",
    ]
    return "".join(parts)


def _marked(best: Point | None, axes: _Axes) -> list[str]:
    """The best evaluation, with its loss beside it on the side where there is room."""
    if best is None:
        return []
    x, y = axes.x(best.step), axes.y(best.loss)
    anchor = "start" if x < _WIDTH / 3 else "end" if x > 2 * _WIDTH / 3 else "middle"
    above = y - 11 if y - 11 > _TOP + 8 else y + 22
    return [
        f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="6"/>',
        f'<text class="mark" x="{x:.1f}" y="{above:.1f}" text-anchor="{anchor}">{figure(best.loss)}</text>',
    ]


def _name(curve: Curve) -> str:
    return localized("損失の曲線", "loss curve") if curve.key == "loss" else str(curve.axis)


def legend(curve: Curve | None = None) -> list[tuple[str, str]]:
    """(class of the line, its name) of everything in the drawing."""
    if curve is not None and curve.key != "loss":
        return [
            ("raw", localized("学習", "training")),
            ("smooth", localized("学習（平滑化）", "training (smoothed)")),
            ("evaluation", localized("評価", "evaluation")),
        ]
    return [("raw", str(_RAW)), ("smooth", str(_SMOOTH)), ("evaluation", str(_EVAL)), ("best", str(_BEST))]


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers around a range, three to seven of them."""
    span = (high - low) or abs(high) or 1.0
    size = 10 ** math.floor(math.log10(span / 4))
    size *= next(factor for factor in (1, 2, 2.5, 5, 10) if span / 4 <= factor * size)
    first, last = math.floor(low / size), math.ceil(high / size)
    return [number * size for number in range(first, max(last, first + 1) + 1)]


def _whole_ticks(steps: int) -> list[int]:
    """Steps to name below the drawing: round ones, and the last."""
    inner = [round(tick) for tick in _ticks(0, steps) if 0 <= tick < 0.9 * steps and tick == round(tick)]
    return [*inner, steps]


def _short(value: float) -> str:
    return f"{value:.6g}"


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
    """The curve as PNG, without a display; in the user's language where a font has its characters, else in English."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    curve = curve_of(history)
    names = (_STEP, curve.axis, _RAW, _SMOOTH, _EVAL, _BEST)
    font = japanese_font("".join(name.ja for name in names)) if localized("ja", "en") == "ja" else None
    text = {name: name.en if font is None else name.ja for name in names}
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(*_coordinates(curve.raw), color="#9ecae1", linewidth=0.8, label=text[_RAW])
    axes.plot(*_coordinates(curve.smooth), color="#08519c", linewidth=1.6, label=text[_SMOOTH])
    if curve.best is not None:
        axes.plot(*_coordinates(curve.evaluations), "o-", color="#d94801", markersize=4, label=text[_EVAL])
        axes.plot(
            [curve.best.step],
            [curve.best.loss],
            "o",
            markersize=11,
            markerfacecolor="none",
            markeredgecolor="#d94801",
            label=text[_BEST],
        )
    family = FontProperties() if font is None else FontProperties(fname=font)
    axes.set_xlabel(text[_STEP], fontproperties=family)
    axes.set_ylabel(text[curve.axis], fontproperties=family)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, frameon=False, prop=family)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.print_png(str(path))


def _coordinates(points: Sequence[Point]) -> tuple[list[int], list[float]]:
    return [point.step for point in points], [point.loss for point in points]


def japanese_font(text: str) -> str | None:
    """The file of an installed font that has every character of a Japanese text; None where there is none."""
    from matplotlib.font_manager import fontManager, get_font

    places = {name: place for place, name in enumerate(_JAPANESE)}
    known = [entry for entry in fontManager.ttflist if entry.name in places]
    for entry in sorted(known, key=lambda entry: (places[entry.name], entry.style != "normal", entry.weight != 400)):
        try:
            font = get_font(entry.fname)
        except (OSError, RuntimeError):  # gone since matplotlib listed it, or damaged
            continue
        if all(font.get_char_index(ord(character)) for character in text):
            return str(entry.fname)
    return None
