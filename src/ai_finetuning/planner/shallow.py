"""Deep models told from shallow ones: which layers to compute in place of all, and the line from them to the whole."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .phases import Moment

# Bytes by moment, of each device.
Peaks = Mapping[Hashable, Mapping[Moment, int]]


@dataclass(frozen=True)
class Span:
    """Consecutive layers that lie on one device.

    Attributes:
        device: its name; "" where there is one.
        first, count: their numbers in the model.
    """

    device: Hashable
    first: int
    count: int


@dataclass(frozen=True)
class Choice:
    """Layers that are computed in place of all.

    Attributes:
        kept: their numbers in the model, in order.
        spans: where they lie, as the choice counts them.
        ends: layers at each end of a span that are told by themselves; those between are alike.
    """

    kept: tuple[int, ...]
    spans: tuple[Span, ...]
    ends: int

    def name(self, at: Moment) -> Moment:
        """A moment with its layer counted from the nearer end of its span; of the layers between, "between"."""
        if not at.part:
            return at
        number = int(at.part)
        place, span = next(
            (place, span) for place, span in enumerate(self.spans) if span.first <= number < span.first + span.count
        )
        after, below = number - span.first, span.first + span.count - 1 - number
        part = f"first {after}" if after < self.ends else f"last {below}" if below < self.ends else "between"
        return replace(at, part=f"{place} {part}")


def period_of(config: Any) -> int:
    """Layers after which their kinds repeat."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or ["layer"])
    return next(
        size for size in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[size:], strict=False))
    )


def choices(spans: Sequence[Span], period: int) -> tuple[Choice, Choice] | None:
    """Two choices that tell of all layers: two and four periods of every span that is deeper, the others whole; None where
    none is.
    """
    if all(span.count <= 4 * period for span in spans):
        return None
    return _chosen(spans, 2 * period, 4 * period), _chosen(spans, 4 * period, 4 * period)


def _chosen(spans: Sequence[Span], number: int, limit: int) -> Choice:
    kept: list[int] = []
    chosen = []
    for span in spans:
        layers = list(range(span.first, span.first + span.count))
        if span.count > limit:
            layers = [*layers[: number // 2], *layers[-(number // 2) :]]
        chosen.append(Span(span.device, len(kept), len(layers)))
        kept += layers
    return Choice(tuple(kept), tuple(chosen), limit // 4)


def extrapolated(spans: Sequence[Span], two: tuple[Choice, Choice], peaks: Sequence[Peaks]) -> Peaks:
    """Each moment's bytes in the whole model, along the line through two choices; their maximum is no line.

    The backward pass through the layers frees activations and makes gradients, layer by layer: between its first and its
    last layers it lies below the line between them. A device's bytes follow the number of its own layers.
    """
    few, many = two
    whole: dict[Hashable, dict[Moment, int]] = {}
    for device in peaks[1]:
        small, large = (
            {choice.name(at): size for at, size in found[device].items()}
            for choice, found in zip(two, peaks, strict=True)
        )
        depth, low, high = (
            sum(span.count for span in of if span.device == device) for of in (spans, few.spans, many.spans)
        )
        slope = (depth - low) / (high - low) if high > low else 1.0
        whole[device] = {at: small[at] + round((large[at] - small[at]) * slope) for at in small if at in large}
    return whole
