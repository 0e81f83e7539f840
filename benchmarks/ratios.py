"""From raw steps to numbers: throughput, ratios with their spread, shares, and which of them can be trusted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# Above this the wall clock measured the machine's other work too (docs/performance.md, Protocol).
CONTAMINATED = 1.05
Steps = Sequence[dict[str, Any]]


def speed(step: dict[str, Any], clock: str) -> float:
    """Real tokens per second of a step; `clock` is wall or cpu."""
    return step["tokens"] / step[clock]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles; one value is all three."""
    if len(values) == 1:
        return dict.fromkeys(("q1", "median", "q3"), values[0])
    return dict(zip(("q1", "median", "q3"), statistics.quantiles(values, n=4, method="inclusive"), strict=True))


def paired_ratios(ours: Steps, peer: Steps, clock: str) -> dict[str, float]:
    """Our speed over the peer's, round by round: what disturbs the machine for a while disturbs both sides of a pair.

    `pooled` is the ratio of all tokens over all time, which weights rounds by their length.
    """
    ratios = [speed(mine, clock) / speed(other, clock) for mine, other in zip(ours, peer, strict=True)]
    return spread(ratios) | {"pooled": pooled(ours, clock) / pooled(peer, clock)}


def pooled(steps: Steps, clock: str) -> float:
    """All tokens over all time."""
    return sum(step["tokens"] for step in steps) / sum(step[clock] for step in steps)


def stretch(step: dict[str, Any], threads: int) -> float:
    """Wall time over CPU time per thread; 1 where all threads computed all the time."""
    return step["wall"] * threads / step["cpu"]


def foreign(step: dict[str, Any], cores: int) -> float | None:
    """Share of the machine that other processes took during the step, or None where the system does not say."""
    busy = step.get("machine_busy")
    return None if busy is None else max(0.0, busy - step["cpu"]) / (step["wall"] * cores)


def contaminated(step: dict[str, Any], threads: int, cores: int) -> bool:
    """Whether others took part in the step's wall time.

    A step of several threads has serial parts, so its stretch is above 1 on a quiet machine too; where the system tells
    how busy it was, what others did is measured instead.
    """
    taken = foreign(step, cores)
    return stretch(step, threads) > CONTAMINATED if taken is None else taken > CONTAMINATED - 1


def summarise(
    groups: Sequence[Mapping[str, Steps]],
    *,
    base: str,
    flops: float,
    ceiling: float,
    threads: int,
    cores: int,
    device: str,
) -> dict[str, dict[str, Any]]:
    """The table's row of every variant, from its counted steps.

    Args:
        groups: what was stepped in turn together; a variant in several of them has all its steps in its row, but is
            compared with the base group by group.
        base: the variant that all others are compared with; in every group.
        flops: FLOPs that a token needs.
        ceiling: FLOP/s of the machine with the run's threads.
        device: whose memory is compared, cpu or cuda.
    """
    memory = "device_peak_bytes" if device == "cuda" else "peak_bytes"
    names = list(dict.fromkeys(name for group in groups for name in group))
    ours = {name: [step for group in groups if name in group for step in group[base]] for name in names}
    obtained = {name: [step for group in groups if name in group for step in group[name]] for name in names}
    peaks = {name: max(step[memory] for step in steps) for name, steps in obtained.items()}
    rows = {}
    for name, steps in obtained.items():
        tokens = sum(step["tokens"] for step in steps)
        rows[name] = {
            "steps": len(steps),
            "tokens_per_second": spread([speed(step, "wall") for step in steps]) | {"pooled": pooled(steps, "wall")},
            "tokens_per_cpu_second": spread([speed(step, "cpu") for step in steps]) | {"pooled": pooled(steps, "cpu")},
            "limit_share": pooled(steps, "wall") * flops / ceiling,
            "limit_share_cpu": pooled(steps, "cpu") * threads * flops / ceiling,
            "useful_slots": tokens / sum(step["slots"] for step in steps),
            "peak_bytes": peaks[name],
            "minor_faults_per_token": sum(step["minor_faults"] for step in steps) / tokens,
            "stretch": statistics.median(stretch(step, threads) for step in steps),
            "contaminated_steps": sum(contaminated(step, threads, cores) for step in steps),
            f"{base}_is_faster_wall": paired_ratios(ours[name], steps, "wall"),
            f"{base}_is_faster_cpu": paired_ratios(ours[name], steps, "cpu"),
            f"{base}_memory_ratio": peaks[base] / peaks[name],
        }
    return rows
