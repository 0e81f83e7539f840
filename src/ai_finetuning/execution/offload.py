"""What training.runtime.offload comes to on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..errors import ConfigError, Reason
from ..messages import notice
from ..parallel.plan import ParallelPlan
from ..planner.memory import MemoryEstimate

_GIB = 2**30


@dataclass(frozen=True)
class Room:
    """Bytes that one process may fill: of its device, and of the host's memory."""

    device: int
    host: int


def resolve_offload(
    asked: str,
    device: torch.device,
    parallel: ParallelPlan,
    optimizer: str,
    *,
    needs: Mapping[str, MemoryEstimate],
    room: Room,
) -> str:
    """`none`, `activations` or `optimizer`.

    Args:
        asked: the setting, or what `auto` has come to.
        optimizer: its name.
        needs: the estimate of each.

    Raises:
        ConfigError: asked for where it cannot be done.
    """
    if asked == "none":
        return "none"
    if device.type != "cuda":
        notice(
            f"training.runtime.offload: {asked} は {device.type} では何もしません（はじめから、すべてその 1 つのメモリーにあります）。",
            f"training.runtime.offload: {asked} has no effect on {device.type}: everything is in its one memory anyway.",
        )
        return "none"
    refusal = _refusal(asked, parallel, optimizer, needs, room)
    if refusal is not None:
        raise ConfigError(
            f"training.runtime.offload: {asked} は使えません: {refusal.ja}",
            f"training.runtime.offload: {asked} cannot be done: {refusal.en}",
        )
    return asked


def _refusal(
    what: str, parallel: ParallelPlan, optimizer: str, needs: Mapping[str, MemoryEstimate], room: Room
) -> Reason | None:
    if parallel.strategy == "model_parallel" or parallel.sizes.pp > 1 or parallel.zero_stage is not None:
        return Reason(
            "パイプライン、model_parallel、DeepSpeed とは組み合わせられません。offload を none にするか、parallel.strategy を ddp か fsdp にしてください。",
            "it does not go with pipelines, model_parallel or DeepSpeed; set it to none, or take parallel.strategy ddp or "
            "fsdp.",
        )
    if what == "optimizer" and optimizer == "adamw_8bit":
        return Reason(
            "training.optimizer.name: adamw_8bit とは組み合わせられません。adamw にするか、offload を activations にしてください。",
            "it does not go with training.optimizer.name: adamw_8bit; take adamw, or set it to activations.",
        )
    moved = needs["none"].total - needs[what].total
    if moved > room.host:
        return Reason(
            f"CPU 側のメモリーが {moved / _GIB:.2f} GiB 要りますが、空きは {room.host / _GIB:.2f} GiB です。offload を none にしてください。",
            f"it needs {moved / _GIB:.2f} GiB of the host's memory, and {room.host / _GIB:.2f} GiB are free; set it to none.",
        )
    return None


def possible(
    parallel: ParallelPlan, optimizer: str, *, needs: Mapping[str, MemoryEstimate], room: Room
) -> tuple[str, ...]:
    """What `auto` may move to the host's memory, the cheapest first; see resolve_offload() for the arguments."""
    both = ("activations", "optimizer")
    return tuple(what for what in both if _refusal(what, parallel, optimizer, needs, room) is None)
