"""What the planner simulates of a step's memory against what the allocator gave, phase by phase, and what the libraries take
beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch

from ...engine.loss import make_document_loss
from ...errors import Reason
from ...models.adapters import add_lora
from ...models.documents import VarlenForward
from ...models.quantized import held_tensors
from ...planner.phases import Timeline
from ...planner.simulate import Job, simulate
from ...planner.tracker import Tracker
from ...system import nvml
from ...system.gpu import own_gpu
from ..simulation import compared, deviations
from .one_step import MIDDLE, TINY, Step, batch_of, make_step, optimizer_for, random_llama
from .results import Check, Measured, NotHere

# Most that a simulated phase may be off: of what a GPU's allocator gives, and of the bytes of tensors on a CPU.
ALLOCATED, TRACKED = 0.05, 0.02


class _Allocated:
    """The most that a GPU's allocator has given in each phase, beyond what it had given before."""

    full_masks = False

    def __init__(self, device: torch.device) -> None:
        self._device, self._phase = device, "load"
        self._before = torch.cuda.memory_allocated(device)
        self.phases: dict[str, int] = {}

    def at(self, phase: str, part: str = "") -> None:
        """Another phase begins."""
        held = torch.cuda.max_memory_allocated(self._device) - self._before
        self.phases[self._phase] = max(held, self.phases.get(self._phase, 0))
        torch.cuda.reset_peak_memory_stats(self._device)
        self._phase = phase


def checks(device: torch.device) -> list[Check]:
    """Three runs."""
    return [
        Check(f"memory/{'full' if full else 'lora'}/{count}", partial(_predicted, device, full, count))
        for full, count in ((True, 1), (False, 1), (False, 2))
    ]


def _predicted(device: torch.device, full: bool, documents: int) -> Measured:
    if device.type not in ("cuda", "cpu"):
        raise NotHere(
            f"{device.type} では、テンソルだけのメモリーを測れません（CUDA の GPU か CPU で確かめます）",
            f"memory of tensors alone is not told on {device.type} (GPUs with CUDA and CPUs tell it)",
        )
    cuda = device.type == "cuda"
    sizes = replace(MIDDLE if cuda else TINY, documents=documents)
    real, reserved, precision = (_on_gpu if cuda else _on_cpu)(partial(make_step, sizes, device, full=full), device)
    compute = precision.autocast or torch.float32
    with torch.device("meta"):
        module = random_llama(sizes, torch.float32 if full else compute)
    job = Job(
        module=module,
        device=device,
        dtype=torch.float32 if full else compute,
        bits=None,
        autocast=precision.autocast,
        kernels="auto",
        adapter=None if full else partial(add_lora, r=16, alpha=32),
        loss=lambda _, path: make_document_loss(cast(VarlenForward, path)),
        optimizer=optimizer_for,
        scaler=precision.scaler,
    )
    told = simulate(job, [batch_of(sizes)])
    return judged(told, real, reserved, ALLOCATED if cuda else TRACKED)


def judged(told: Timeline, real: dict[str, int], reserved: int | None, limit: float) -> Measured:
    """The largest deviation of a phase, and of what was reserved in all, where it is known.

    Args:
        real: bytes by phase.
    """
    off = [abs(value) for value in deviations(told, real).values()]
    text = compared(told, real)[0]
    if reserved is not None:
        off.append(abs(told.reserved / reserved - 1))
        text += (
            f", reserved {told.reserved / 2**20:.1f} / {reserved / 2**20:.1f} MiB ({told.reserved / reserved - 1:+.1%})"
        )
    return Measured(max(off, default=float("nan")), limit, Reason(text, text))


_Make = Callable[..., Step]
_Real = tuple[dict[str, int], int | None, Any]


def _on_gpu(make: _Make, device: torch.device) -> _Real:
    """(bytes by phase, bytes reserved, precision) of a second step."""
    gc.collect()  # of the run before
    torch.cuda.empty_cache()
    one = torch.zeros(256, 256, device=device)
    torch.mm(one, one)  # the workspace of products is there before, and stays
    del one
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(device)
    phases = _Allocated(device)
    step = make(phases=phases)
    step.take()
    phases.phases.clear()
    torch.cuda.reset_peak_memory_stats(device)
    step.take()  # with the optimizer's state there
    torch.cuda.synchronize(device)
    return phases.phases, torch.cuda.max_memory_reserved(device) - before, step.precision


def _on_cpu(make: _Make, device: torch.device) -> _Real:
    """The same, by the tensors' bytes, as a CPU has no allocator that tells."""
    tracker = Tracker()
    step = make(phases=tracker)
    step.take()
    with tracker:
        states = [value for state in step.optimizer.state.values() for value in state.values()]
        tracker.hold([*held_tensors(step.model), *(value for value in states if isinstance(value, torch.Tensor))])
        tracker.forget_peaks()
        step.take()
    return tracker.by_phase(), None, step.precision


def calibrate(device: torch.device) -> dict[str, int]:
    """Bytes that the process has on a GPU beside its tensors: the context with the first kernel, the workspace of the first
    product, and what a first compiled kernel adds. Empty where the GPU is in use by this process already, or none.
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
    taken = {"context_bytes": max(0, int(context)), "workspace_bytes": max(0, int(workspace))}
    compiled = _grown_by(device, lambda: torch.compile(torch.nn.functional.gelu)(one))
    return taken | ({} if compiled is None else {"compiled_bytes": compiled})


def calibrate_communicator(device: torch.device) -> dict[str, int]:
    """Bytes that NCCL takes on a GPU for one communicator of all GPUs of this machine, by its first sum over them."""
    if device.type != "cuda" or torch.cuda.device_count() < 2:
        raise NotHere("GPU が 2 枚以上ありません", "there are not two GPUs")
    parts = [torch.zeros(2**20, device=torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    all_reduce: Callable[..., Any] = torch.cuda.nccl.all_reduce  # untyped
    taken = _grown_by(parts[0].device, lambda: all_reduce(parts))
    if taken is None:
        raise NotHere("NCCL を使えません", "NCCL cannot be used")
    return {"communicator_bytes": taken}


def _grown_by(device: torch.device, work: Callable[[], Any]) -> int | None:
    """Bytes of the device that are gone behind some work and that torch has not reserved; None where it cannot be done here
    (no compiler, no NCCL), as runs find too.
    """

    def outside() -> int:
        torch.cuda.synchronize(device)
        free, whole = torch.cuda.mem_get_info(device)
        return int(whole - free - torch.cuda.memory_reserved(device))

    before = outside()
    try:
        work()
    except Exception:  # libraries say so in many ways
        return None
    return max(0, outside() - before)
