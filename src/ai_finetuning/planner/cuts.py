"""How the rows of a step are cut for GPUs: which cuts are looked at, in which order, and which one is taken. Needs no torch.

A cut is a size of micro-batch with the accumulation that goes with it, gradient checkpointing or not, and what waits in the
host's memory. The rows of a step are the same in every cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..errors import Reason, localized

# The formula of memory lies up to so much above a simulation of a model of some size (docs/decisions/0114): what needs
# more by it does not fit.
_REACH = 1.35
# Cuts that are simulated beside the one that fits by the formula.
_TRIED = 2
# A larger micro-batch has to be faster by this much: what it saves is host time and weights that are read less often.
_WORTH = 0.01
_RUNNERS_UP = 3
_GIB = 2**30


@dataclass(frozen=True)
class Cut:
    """How the rows of a step are computed.

    Attributes:
        batch_size: rows of a micro-batch on a device.
        accumulation: micro-batches of a step over all devices; the product is the rows of a step.
        checkpointing: activations are computed again in the backward pass.
        offload: what waits in the host's memory: none, activations or optimizer.
    """

    batch_size: int
    accumulation: int
    checkpointing: bool
    offload: str = "none"

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.batch_size * self.accumulation

    def of(self, batch_size: int) -> Cut:
        """With other micro-batches; `batch_size` divides the rows."""
        return replace(self, batch_size=batch_size, accumulation=self.rows // batch_size)

    def wider(self, most: int) -> Cut | None:
        """With micro-batches of at least twice as many rows; None where that is more than `most`."""
        sizes = [size for size in range(2 * self.batch_size, most + 1) if self.rows % size == 0]
        return self.of(sizes[0]) if sizes else None

    def narrower(self) -> Cut | None:
        """With micro-batches of at most half as many rows; None for one row."""
        sizes = [size for size in range(self.batch_size // 2, 0, -1) if self.rows % size == 0]
        return self.of(sizes[0]) if sizes else None


@dataclass(frozen=True)
class Freedom:
    """What of a cut the user left to the plan.

    Attributes:
        rows: the micro-batch and the accumulation.
        checkpointing: gradient checkpointing.
        offload: what may wait in the host's memory where nothing else fits.
    """

    rows: bool = False
    checkpointing: bool = False
    offload: tuple[str, ...] = ()

    @property
    def any(self) -> bool:
        """Whether there is anything to choose."""
        return self.rows or self.checkpointing or bool(self.offload)


@dataclass(frozen=True)
class Candidate:
    """A way to train, with what it is expected to need.

    Attributes:
        strategy, processes: how the run is spread.
        needed: bytes of the fullest device.
        limit: bytes of it that may be filled.
        seconds: of a step by the time model; None where that knows nothing.
        simulated: whether `needed` was simulated; else it is the formula's.
        order: in which candidates of equal time are preferred.
    """

    strategy: str
    processes: int
    cut: Cut
    needed: int
    limit: int
    seconds: float | None = None
    simulated: bool = False
    order: int = 0

    @property
    def fits(self) -> bool:
        """Whether it needs no more than may be filled."""
        return self.needed <= self.limit

    @property
    def cost(self) -> tuple[bool, float]:
        """What the cheapest has least of; unknown times come last."""
        return (self.seconds is None, self.seconds or 0.0)

    def text(self) -> str:
        """One short line, in the locale's language."""
        cut, size = self.cut, f"{self.needed / _GIB:.1f} / {self.limit / _GIB:.1f} GiB"
        on = (
            localized("勾配チェックポイントあり", "checkpointing")
            if cut.checkpointing
            else localized("勾配チェックポイントなし", "no checkpointing")
        )
        waits = "" if cut.offload == "none" else f", offload {cut.offload}"
        spread = f"{self.strategy}, " if self.strategy == "model_parallel" else ""
        if self.processes > 1:
            spread = f"{self.strategy} x {self.processes}, "
        short = "" if self.fits else localized("（収まりません）", " (does not fit)")
        how = localized("（シミュレーション）", " (simulated)") if self.simulated else ""
        time = (
            ""
            if self.seconds is None
            else localized(f"、{self.seconds:.3g} 秒/ステップ", f", {self.seconds:.3g} s a step")
        )
        return f"{spread}batch {cut.batch_size} x {cut.accumulation}, {on}{waits}: {size}{how}{short}{time}"

    def fields(self) -> dict[str, Any]:
        """The same for JSON, by the names of the settings."""
        return {
            "strategy": self.strategy,
            "processes": self.processes,
            "batch_size": self.cut.batch_size,
            "gradient_accumulation_steps": self.cut.accumulation,
            "gradient_checkpointing": self.cut.checkpointing,
            "offload": self.cut.offload,
            "bytes": self.needed,
            "limit_bytes": self.limit,
            "fits": self.fits,
            "simulated": self.simulated,
            "seconds_per_step": self.seconds,
        }


@dataclass(frozen=True)
class Choice:
    """What a plan took, and what else it looked at.

    Attributes:
        chosen: what was taken; where nothing fits, what is nearest to it.
        others: the rest, in the order in which they were looked at.
        decided: the settings that the plan decided; empty where the user gave all of them.
        source: where the times are from; None where there are none.
    """

    chosen: Candidate
    others: tuple[Candidate, ...] = ()
    decided: tuple[str, ...] = ()
    source: Reason | None = None

    def runners_up(self) -> list[Candidate]:
        """At most three: the best of every other strategy, then what comes next."""
        order = sorted(self.others, key=lambda item: (not item.fits, *item.cost, item.needed))
        best = {item.strategy: item for item in reversed(order) if item.strategy != self.chosen.strategy}.values()
        first = [item for item in order if any(item is other for other in best)]
        rest = [item for item in order if not any(item is other for other in first)]
        return [*first, *rest][:_RUNNERS_UP]

    def hopeful(self) -> list[Candidate]:
        """What would be better than what was taken, and may fit although the formula says that it does not: the cheapest
        first, as many as are worth their simulation.
        """
        near = [item for item in self.others if not item.fits and item.needed <= _REACH * item.limit]
        better = [item for item in near if not self.chosen.fits or self._before(item)]
        return sorted(better, key=lambda item: (item.cost, item.order))[:_TRIED]

    def _before(self, other: Candidate) -> bool:
        """Whether another one is faster, or preferred and not slower."""
        first = other.order < self.chosen.order
        if other.seconds is None or self.chosen.seconds is None:
            return first
        return _is_faster(other.seconds, self.chosen.seconds) or (first and other.seconds <= self.chosen.seconds)

    def taking(self, candidate: Candidate) -> Choice:
        """The choice with another candidate taken, or a known one with its simulated size."""
        every = (self.chosen, *self.others)
        place = (candidate.strategy, candidate.cut)
        return replace(
            self, chosen=candidate, others=tuple(item for item in every if (item.strategy, item.cut) != place)
        )

    def knowing(self, candidate: Candidate) -> Choice:
        """The choice with the simulated size of one that was not taken."""
        place = (candidate.strategy, candidate.cut)
        return replace(
            self,
            others=tuple(candidate if (item.strategy, item.cut) == place else item for item in self.others),
        )

    def fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "chosen": self.chosen.fields(),
            "runners_up": [item.fields() for item in self.runners_up()],
            "decided": list(self.decided),
            "time_source": asdict(self.source) if self.source is not None else None,
        }


def ladder(asked: Cut, free: Freedom, most: int) -> list[Cut]:
    """The cuts to look at, the cheapest first: as asked without checkpointing, with it, ever smaller micro-batches, and
    what waits on the host.

    Args:
        most: rows that a device has in a step; a micro-batch of more is none.
    """
    first = asked
    while free.rows and first.batch_size > most:
        first = first.narrower() or first
    cuts = [
        replace(first, checkpointing=on) for on in ((False, True) if free.checkpointing else (asked.checkpointing,))
    ]
    if free.rows:
        while (smaller := cuts[-1].narrower()) is not None:
            cuts.append(smaller)
    return cuts + [replace(cuts[-1], offload=what) for what in free.offload]


def looked_at(
    cuts: Sequence[Cut], most: int | None, measure: Callable[[Cut], Candidate]
) -> tuple[Candidate, list[Candidate]]:
    """(the one that is taken, all that were looked at): the first that fits, then with larger micro-batches while steps
    get shorter.

    Args:
        cuts: ladder().
        most: rows of the largest micro-batch; None: they stay as they are.
        measure: what a cut needs.
    """
    every = [measure(cut) for cut in cuts]
    fitting = [candidate for candidate in every if candidate.fits]
    if not fitting:
        return min(every, key=lambda candidate: candidate.needed / candidate.limit), every
    taken = fitting[0]
    while most is not None and taken.seconds is not None and (wider := taken.cut.wider(most)) is not None:
        larger = next((candidate for candidate in every if candidate.cut == wider), None)
        if larger is None:
            larger = measure(wider)
            every.append(larger)
        if not larger.fits or larger.seconds is None or not _is_faster(larger.seconds, taken.seconds):
            break
        taken = larger
    return taken, every


def _is_faster(seconds: float, than: float) -> bool:
    return seconds <= (1 - _WORTH) * than


def best_of(
    found: Sequence[tuple[Candidate, list[Candidate]]], decided: Sequence[str] = (), source: Reason | None = None
) -> Choice:
    """Of what each strategy takes the cheapest that fits, the first of equal ones; else what is nearest to it.

    Args:
        found: looked_at() of every strategy, in the order of preference.
    """
    every = [(taken is candidate, candidate) for taken, looked in found for candidate in looked]
    numbered = [(is_taken, replace(candidate, order=order)) for order, (is_taken, candidate) in enumerate(every)]
    taken = [candidate for is_taken, candidate in numbered if is_taken]
    fitting = [candidate for candidate in taken if candidate.fits]
    chosen = (
        min(fitting, key=lambda candidate: candidate.cost)
        if fitting
        else min(taken, key=lambda candidate: candidate.needed / candidate.limit)
    )
    others = tuple(candidate for _, candidate in numbered if candidate is not chosen)
    return Choice(chosen, others, tuple(decided), source)
