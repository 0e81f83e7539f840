"""What the planner predicts of a step's memory against what the allocator gave, and what the libraries take beside it."""

from __future__ import annotations

import gc
from dataclasses import replace
from functools import partial

import torch

from ...errors import Reason
from ...planner import memory
from ...system import nvml
from ...system.gpu import own_gpu
from .one_step import MIDDLE, make_step
from .results import Check, Measured, NotHere

# Most that the prediction may be off. It is the formula's; that of a simulated plan is to be 0.05.
FORMULA = 0.5


def checks(device: torch.device) -> list[Check]:
    """Three runs."""
    return [
        Check(f"memory/{'full' if full else 'lora'}/{count}", partial(_predicted, device, full, count))
        for full, count in ((True, 1), (False, 1), (False, 2))
    ]


def _predicted(device: torch.device, full: bool, documents: int) -> Measured:
    if device.type != "cuda":
        raise NotHere(
            f"{device.type} では、テンソルだけのメモリーを測れません（実機の GPU で確かめます）",
            f"memory of tensors alone is not told on {device.type} (a GPU's allocator tells it)",
        )
    gc.collect()  # of the run before
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    step = make_step(replace(MIDDLE, documents=documents), device, full=full)
    step.take()
    torch.cuda.reset_peak_memory_stats(device)
    step.take()  # with the optimizer's state there
    torch.cuda.synchronize(device)
    real = torch.cuda.max_memory_allocated(device) - before
    estimate = memory.estimate(step.shape, step.work, checkpointing=False)
    expected = estimate.total - estimate.base
    off = real / expected - 1
    gib = 2**30
    return Measured(
        abs(off),
        FORMULA,
        Reason(
            f"式 {expected / gib:.2f} GiB、実際 {real / gib:.2f} GiB（{off:+.0%}）",
            f"formula {expected / gib:.2f} GiB, real {real / gib:.2f} GiB ({off:+.0%})",
        ),
    )


def calibrate(device: torch.device) -> dict[str, int]:
    """Bytes that the process has on a GPU beside its tensors: the context with the first kernel, and the workspace of the
    first product. Empty where the GPU is in use by this process already, or none.
    """
    if device.type != "cuda" or own_gpu() is not None:
        return {}
    free = nvml.free_bytes(device.index or 0)
    if free is None:
        return {}
    torch.zeros(1, device=device)
    torch.cuda.synchronize(device)
    reserved = torch.cuda.memory_reserved(device)
    context = free - torch.cuda.mem_get_info(device)[0] - reserved
    one = torch.zeros(256, 256, device=device)
    before = torch.cuda.memory_allocated(device)
    product = torch.mm(one, one)
    torch.cuda.synchronize(device)
    workspace = torch.cuda.memory_allocated(device) - before - product.numel() * product.element_size()
    return {"context_bytes": max(0, int(context)), "workspace_bytes": max(0, int(workspace))}
