"""The short part of the checks before the first training on a GPU that nobody has checked."""

from __future__ import annotations

from typing import Any

import torch

from ...messages import notice, warn
from . import parity, record
from .facts import facts
from .results import run_all


def check_unknown_gpu(device: torch.device) -> None:
    """Checks a GPU once: the kernels of a step against fp32. What it finds is said and kept; the run goes on, as its own
    probe of the model decides what it computes with.
    """
    if device.type == "cuda" and record.stored(device) is None:
        notice(
            "この GPU での最初の学習です。計算を確かめています（20 秒ほど）…",
            "first training on this GPU: checking what it computes (some 20 seconds)…",
        )
        check_quickly(device)


def check_quickly(device: torch.device) -> dict[str, Any]:
    """The short part, kept as the device's record; a failure is warned of."""
    results = list(run_all(parity.checks(device, quick=True)))
    made = record.make(device, "quick", facts(device), results)
    record.store(made)
    failed = [result.name for result in results if result.status == "failed"]
    if failed:
        names = ", ".join(failed[:5])
        warn(
            f"{made['key']['device']} で {len(failed)} 件の計算が fp32 と合いません（{names}）。aift gpu self-check で詳しく調べてください。",
            f"{made['key']['device']} computes {len(failed)} things otherwise than fp32 ({names}); aift gpu self-check tells "
            "more.",
        )
    return made
