"""`strategy: auto` where devices are processes of a CPU: by arithmetic, with one line of reason. On GPUs planner/cuts.py
chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError, localized
from .memory import MemoryEstimate
from .spread import of_sharded_rank

_GIB = 2**30


@dataclass(frozen=True)
class Situation:
    """What the choice depends on; bytes.

    Attributes:
        devices: memory that a run may use on each.
        whole: need of a device that holds everything (planner/memory.py).
        gathered: the largest layer's weights, whole while fsdp computes it.
        shardable: whether fsdp can cut this run's weights and optimizer (AdamW in 32 bit; no 8-bit base).
    """

    devices: Sequence[int]
    whole: MemoryEstimate
    gathered: int
    shardable: bool = True

    @property
    def least(self) -> int:
        """Memory of the smallest device: every rank of ddp and fsdp holds as much as the others."""
        return min(self.devices)

    @property
    def sharded(self) -> int:
        """Need of a device under fsdp."""
        return of_sharded_rank(self.whole, len(self.devices), self.gathered).total


@dataclass(frozen=True)
class StrategyAdvice:
    """What was chosen: a strategy, its number of processes, and why in one line of each language."""

    strategy: str
    processes: int
    reason_ja: str
    reason_en: str

    @property
    def reason(self) -> str:
        """In the locale's language."""
        return localized(self.reason_ja, self.reason_en)


@dataclass(frozen=True)
class _Rule:
    strategy: str
    holds: Callable[[Situation], bool]
    one_process: bool
    ja: str
    en: str


# The first rule that holds is taken. Not in the table: `tensor` and `pipeline`, which pay by the network between the
# devices, something that no configuration says (docs/strategies.md tells when to ask for them).
_RULES = (
    _Rule(
        "ddp",
        lambda s: len(s.devices) == 1,
        True,
        "デバイスは 1 つなので、1 プロセスで学習します",
        "there is one device: training in one process",
    ),
    _Rule(
        "ddp",
        lambda s: s.whole.total <= s.least,
        False,
        "1 つに収まる（必要 {whole:.1f} GiB、最小のデバイス {least:.1f} GiB）ので、{n} つで別々の行を計算します",
        "one device holds everything (needs {whole:.1f} GiB, the smallest has {least:.1f} GiB), so {n} compute "
        "different rows",
    ),
    _Rule(
        "fsdp",
        lambda s: s.shardable and s.sharded <= s.least,
        False,
        "1 つには収まらない（必要 {whole:.1f} GiB、最小のデバイス {least:.1f} GiB）ので、重みと勾配とオプティマイザーを {n} つに分けます（それぞれ {sharded:.1f} GiB）",
        "one device cannot hold it (needs {whole:.1f} GiB, the smallest has {least:.1f} GiB), so {n} share "
        "weights, gradients and optimizer ({sharded:.1f} GiB each)",
    ),
)


def advise_strategy(situation: Situation) -> StrategyAdvice:
    """The first strategy of the table under which the run fits; one device takes what there is.

    Raises:
        ConfigError: nothing fits on several devices; with the arithmetic and the way out.
    """
    numbers = {
        "whole": situation.whole.total / _GIB,
        "least": situation.least / _GIB,
        "sharded": situation.sharded / _GIB,
        "n": len(situation.devices),
    }
    for rule in _RULES:
        if rule.holds(situation):
            processes = 1 if rule.one_process else len(situation.devices)
            return StrategyAdvice(rule.strategy, processes, rule.ja.format(**numbers), rule.en.format(**numbers))
    raise ConfigError(
        "parallel.strategy auto: どの戦略でもメモリーに収まりません。1 つなら {whole:.1f} GiB、fsdp で {n} つに分けても {sharded:.1f} GiB ずつ必要で、"
        "最小のデバイスは {least:.1f} GiB です。"
        "method: qlora か lora にする、data.max_length か batch_size を下げる、gradient_checkpointing: true にする、または GPU "
        "を増やしてください。".format(**numbers),
        "parallel.strategy auto: no strategy fits in memory. One device would need {whole:.1f} GiB, each of {n} "
        "under fsdp "
        "{sharded:.1f} GiB; the smallest has {least:.1f} GiB. "
        "Use method: qlora or lora, lower data.max_length or batch_size, set gradient_checkpointing: true, or use "
        "more GPUs.".format(**numbers),
    )
