"""Strategies over several GPUs (of a machine without: over two CPU processes) against one: losses, and copies between
GPUs.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from .results import Check, Measured, NotHere
from .speed import seconds_of
from .steps import STEPS, Bench, losses

# Strategy and micro-batches of each data rank; of fsdp both, as several are another path of the gradients.
_RUNS = (("ddp", 2), ("fsdp", 1), ("fsdp", 4), ("tensor", 2), ("pipeline", 2))
_LIMIT = 1e-3


def checks(bench: Bench) -> list[Check]:
    """Full fine-tuning of a tiny Llama in fp32 under every strategy."""
    return [Check(f"several/{name}/{count}", partial(_follows, bench, name, count)) for name, count in _RUNS]


def _follows(bench: Bench, strategy: str, accumulation: int) -> Measured:
    cuda = bench.device.type == "cuda"
    processes = torch.cuda.device_count() if cuda else 2
    if processes < 2:
        raise NotHere("GPU は 1 枚です", "there is one GPU")
    processes = 2 if strategy in ("tensor", "pipeline") else processes  # whose sizes divide the tiny model
    # A step is counted over all processes: so many micro-batches are each data rank's.
    ranks = processes if strategy in ("ddp", "fsdp") else 1
    common = (
        "training.runtime.precision=fp32",
        f"training.gradient_accumulation_steps={accumulation * ranks}",
        "training.batch_size=1",
    )
    expected = losses(bench.train("llama", "full", bench.device, *common))
    spread = (f"parallel.strategy={strategy}", f"parallel.processes={processes}")
    device = torch.device("cuda") if cuda else bench.device
    obtained = losses(bench.train("llama", "full", device, *common, *spread))
    if len(obtained) != STEPS:
        return Measured(float("nan"), _LIMIT)
    return Measured(max(abs(one - other) for one, other in zip(obtained, expected, strict=True)), _LIMIT)


def copy_checks(device: torch.device, into: dict[str, Any]) -> list[Check]:
    """Copies between GPUs, whose speeds go `into` a record."""

    def measure() -> Measured:
        if device.type != "cuda" or torch.cuda.device_count() < 2:
            raise NotHere("GPU が 2 枚以上ありません", "there are not two GPUs")
        into["between_gpus"] = between_gpus()
        return Measured(0.0, 0.0)

    return [Check("several/copies", measure)]


def between_gpus() -> dict[str, float]:
    """GB/s of a copy from the first GPU to each of the others."""
    size, obtained = 2**28, {}
    for index in range(1, torch.cuda.device_count()):
        here = torch.zeros(size, dtype=torch.uint8, device="cuda:0")
        there = torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}")

        def copy(target: torch.Tensor = there, source: torch.Tensor = here) -> None:
            target.copy_(source)
            torch.cuda.synchronize(target.device)

        obtained[f"0-{index}"] = size / seconds_of(copy, here.device) / 1e9
    return obtained
