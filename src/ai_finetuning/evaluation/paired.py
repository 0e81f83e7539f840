"""Two models on the same items: is there a difference, how large may it be, and which one could have been seen.

Differences are after - before, one for each item, and positive where the second model is better.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS, SEED = 20_000, 0
LEVEL, POWER = 0.05, 0.8
# Quantiles of the normal distribution: two-sided 5 %, and 80 % power.
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621
# Share of items on which two models are assumed to differ, where no pilot has said it.
DISCORDANT = 0.2
CEILING = 0.98
# Items (of prose: works) below which an interval is no ground to call something kept: resampling so few of them tells too
# little of those that were not drawn. Of four works with a loss at the margin one in ten would pass, of one every second.
FEWEST = 10
# Random signs or indices that exist at a time.
_CHUNK = 4_000_000
# Different values up to which a sample is drawn by their numbers.
_FEW = 20

Numbers = NDArray[np.float64]


def mcnemar_mid_p(gained: int, lost: int) -> float:
    """Two-sided mid-p value of McNemar's test.

    It keeps its size where the exact test is far below it (Fagerland, Lydersen, Laake 2013).

    Args:
        gained: items that only the second model has right.
        lost: items that only the first one has right.
    """
    count, few = gained + lost, min(gained, lost)
    if gained == lost:
        return 1.0
    logs = [_log_choose(count, number) - count * float(np.log(2)) for number in range(few + 1)]
    terms = np.exp(logs)
    return min(1.0, float(2 * terms.sum() - terms[-1]))


def _log_choose(count: int, number: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(number + 1) - math.lgamma(count - number + 1)


def sign_flip_p(differences: Sequence[float], *, draws: int = DRAWS, seed: int = SEED) -> float:
    """Two-sided p value of the mean of paired differences: how often random signs give one as far from 0.

    The obtained signs count as one draw, so that the value is never 0 and the test keeps its size.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    least = abs(float(values.sum())) * (1 - 1e-12)
    generator, reached, done = np.random.default_rng(seed), 0, 0
    while done < draws:
        rows = min(draws - done, max(1, _CHUNK // len(values)))
        signs = generator.integers(0, 2, size=(rows, len(values)), dtype=np.int8) * 2.0 - 1.0
        reached += int((np.abs(signs @ values) >= least).sum())
        done += rows
    return (1 + reached) / (1 + draws)


def bootstrap_interval(differences: Sequence[float], *, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of paired differences."""
    values = np.asarray(differences, dtype=np.float64)
    if not len(values):
        return math.nan, math.nan
    if np.all(values == values[0]):
        return float(values[0]), float(values[0])
    generator = np.random.default_rng(seed)
    kinds, counts = np.unique(values, return_counts=True)
    if len(kinds) <= _FEW:  # resampling items is drawing how many there are of each value
        drawn = generator.multinomial(len(values), counts / len(values), size=draws)
        low, high = np.quantile(drawn @ kinds / len(values), [LEVEL / 2, 1 - LEVEL / 2])
        return float(low), float(high)
    rows, means = max(1, _CHUNK // len(values)), []
    for start in range(0, draws, rows):
        count = min(rows, draws - start)
        means.append(values[generator.integers(0, len(values), size=(count, len(values)))].mean(axis=1))
    low, high = np.quantile(np.concatenate(means), [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def group_means(values: Sequence[float], groups: Sequence[Any]) -> list[float]:
    """The mean of each group's values, in the order in which the groups first stand: passages of one work are not
    independent of each other, works are.
    """
    found: dict[Any, list[float]] = {}
    for value, group in zip(values, groups, strict=True):
        found.setdefault(group, []).append(value)
    return [sum(items) / len(items) for items in found.values()]


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values of several tests together (Holm 1979): below 0.05 for any of them in 5 % of cases at most, where no
    difference is.
    """
    adjusted: dict[str, float] = {}
    worst = 0.0
    for rank, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        worst = max(worst, min(1.0, value * (len(p_values) - rank)))
        adjusted[name] = worst
    return {name: adjusted[name] for name in p_values}


def least_difference(count: int, discordant: float = DISCORDANT) -> float:
    """The smallest difference of two shares of right answers that a test on so many items finds in 80 % of cases.

    Solves d = (1.960 sqrt(p) + 0.842 sqrt(p - d^2)) / sqrt(n) for McNemar's test. It is never less than what the fewest
    items make of it with which that test sees anything, all of them going one way: of fewer items it is above 1.

    Args:
        count: items, n.
        discordant: share of items that only one of the models has right, p. A result above it says that so few items
            show no difference at all while the models differ on so few of them.
    """
    if count <= 0 or discordant <= 0:
        return discordant if count > 0 else math.inf
    fewest = least_items() / count
    low, high = 0.0, math.sqrt(discordant)
    for _ in range(60):
        middle = (low + high) / 2
        needed = (_Z_LEVEL * math.sqrt(discordant) + _Z_POWER * math.sqrt(discordant - middle**2)) / math.sqrt(count)
        low, high = (middle, high) if middle < needed else (low, middle)
    return max(high, fewest)


def least_items() -> int:
    """How many items have to differ, all in one direction, for a difference to be seen."""
    return next(count for count in itertools.count(1) if mcnemar_mid_p(count, 0) <= LEVEL)


def least_mean_difference(count: int, deviation: float) -> float:
    """The same for a mean of differences with this standard deviation."""
    return (_Z_LEVEL + _Z_POWER) * deviation / math.sqrt(count) if count > 0 else math.inf


def items_for(difference: float, discordant: float = DISCORDANT) -> int:
    """Items with which a difference of two shares would be seen: no fewer than the exact test sees where all go one way."""
    discordant = max(discordant, abs(difference))  # items that differ are at least those that the difference is made of
    spread = max(discordant - difference**2, 0.0)
    needed = ((_Z_LEVEL * math.sqrt(discordant) + _Z_POWER * math.sqrt(spread)) / difference) ** 2
    return math.ceil(max(needed, least_items() / abs(difference)))


def above_chance(right: int, count: int, chance: float) -> bool:
    """Whether a share of right answers is above guessing (one-sided binomial, p <= 0.05)."""
    if not count or chance >= 1:
        return False
    if chance <= 0:
        return right > 0
    log, log_not = math.log(chance), math.log1p(-chance)
    logs = [
        _log_choose(count, number) + number * log + (count - number) * log_not for number in range(right, count + 1)
    ]
    return float(np.exp(logs).sum()) <= LEVEL


@dataclass(frozen=True)
class Compared:
    """A task's result on the same items.

    Attributes:
        count: items (of prose: works).
        before, after: means.
        interval: of the mean difference, in the direction in which more is better.
        p: of no difference.
    """

    count: int
    before: float
    after: float
    interval: tuple[float, float]
    p: float

    @property
    def difference(self) -> float:
        """after - before."""
        return self.after - self.before


def compare_scores(
    before: Sequence[float], after: Sequence[float], *, groups: Sequence[Any] | None = None, lower: bool = False
) -> Compared:
    """Two models' scores of the same items.

    Scores of 0 and 1 are tested by McNemar's mid-p, others by flipping signs.

    Args:
        before, after: a score for each item, in the same order.
        groups: of each item, where several of one source are not independent; then sources are resampled.
        lower: less is better (bits per character); the interval is turned around, the means are not.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} scores before, {len(after)} after")
    if groups is not None:
        before, after = group_means(before, groups), group_means(after, groups)
    sign = -1.0 if lower else 1.0
    differences = [sign * (second - first) for first, second in zip(before, after, strict=True)]
    count = len(differences)
    if {*before, *after} <= {0, 1}:
        p = mcnemar_mid_p(sum(value > 0 for value in differences), sum(value < 0 for value in differences))
    else:
        p = sign_flip_p(differences)
    means = [sum(values) / count if count else math.nan for values in (before, after)]
    return Compared(count, means[0], means[1], bootstrap_interval(differences), p)


@dataclass(frozen=True)
class Kept:
    """Whether something was kept: a question of how much can have been lost, not of whether a loss was seen.

    Attributes:
        state: `kept`: the bad end of the interval is inside the margin; `lost`: its good end is outside; `unclear`:
            neither, or the items are too few.
        needed: items with which it would be kept, were the difference what it is now; None where no number would do.
    """

    state: str
    needed: int | None = None


def non_inferior(compared: Compared, margin: float, *, share: bool = False) -> Kept:
    """Whether a model has lost at most `margin`.

    Args:
        share: the scores are 0 and 1. Then a single item must not be more than the margin: of fewer ones no loss that is
            allowed could be told from none.
    """
    low, high = compared.interval
    fewest = max(FEWEST, math.ceil(1 / margin - 1e-9)) if share and margin > 0 else FEWEST
    if low >= -margin:
        return Kept("kept") if compared.count >= fewest else Kept("unclear", fewest)
    if high < -margin and (compared.count >= FEWEST or compared.p < LEVEL):
        return Kept("lost")
    centre = (low + high) / 2
    room = centre + margin
    if room <= 0:
        return Kept("unclear", fewest if compared.count < FEWEST else None)
    return Kept("unclear", max(fewest, math.ceil(compared.count * ((centre - low) / room) ** 2)))
