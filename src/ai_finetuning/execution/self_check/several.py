"""Strategies over several GPUs (of a machine without: over two CPU processes) against one: losses, and copies between
GPUs.
"""

from __future__ import annotations

from functools import partial

import torch

from .results import Check, Measured, NotHere
from .speed import seconds_of
from .steps import STEPS, Bench, losses

# Strategy and micro-batches of a step; of fsdp both, as gradients of a micro-batch are another path with accumulation.
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
    rows = 4 // accumulation
    common = (
        "training.runtime.precision=fp32",
        f"training.gradient_accumulation_steps={accumulation}",
        f"training.batch_size={rows}",
    )
    expected = losses(bench.train("llama", "full", bench.device, *common))
    spread = (
        f"parallel.strategy={strategy}",
        f"parallel.processes={2 if strategy in ('tensor', 'pipeline') else processes}",
    )
    device = torch.device("cuda") if cuda else bench.device
    obtained = losses(bench.train("llama", "full", device, *common, *spread))
    if len(obtained) != STEPS:
        return Measured(float("nan"), _LIMIT)
    return Measured(max(abs(one - other) for one, other in zip(obtained, expected, strict=True)), _LIMIT)


def between_gpus() -> dict[str, float]:
    """GB/s of a copy from the first GPU to each of the others; empty with one."""
    size, obtained = 2**28, {}
    for index in range(1, torch.cuda.device_count()):
        here = torch.zeros(size, dtype=torch.uint8, device="cuda:0")
        there = torch.empty(size, dtype=torch.uint8, device=f"cuda:{index}")

        def copy(target: torch.Tensor = there, source: torch.Tensor = here) -> None:
            target.copy_(source)
            torch.cuda.synchronize(target.device)

        obtained[f"0-{index}"] = size / seconds_of(copy, here.device) / 1e9
    return obtained
