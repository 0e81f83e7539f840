"""The documented GPU functions, and what else the toolkit asks the machine."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from numbers import Real
from pathlib import Path
from typing import Any

import psutil
import torch

from ..errors import ConfigError
from ..messages import notice
from . import heap, nvml

_GB = 1e9


def get_available_device() -> torch.device:
    """The best device there is: CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def chosen_device(device: torch.device | str | None) -> torch.device | None:
    """A device as the user names it; None stays None, which means the best one.

    Raises:
        ConfigError: no such kind of device, or none of it on this machine.
    """
    if device is None:
        return None
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(
            f"device が {device!r} です。cpu、cuda、cuda:0、mps のように書いてください。",
            f"device is {device!r}; write cpu, cuda, cuda:0 or mps.",
        ) from error
    there = {
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(chosen.type)
    if there == 0 or (there is not None and chosen.index is not None and chosen.index >= there):
        raise ConfigError(
            f"device が {chosen} ですが、この PC で使える {chosen.type} のデバイスは {there} 個です。device=None なら使えるものを選びます（GPU がなければ CPU）。",
            f"device is {chosen}, but this machine has {there} usable {chosen.type} devices; device=None takes the best one "
            "there is.",
        )
    return chosen


def get_gpu_memory_info() -> dict[str, Any]:
    """Memory of every CUDA device in GB (10^9 bytes), in the documented shape; `available` is False without one."""
    if not torch.cuda.is_available():
        return {"available": False, "device_count": 0, "devices": []}
    return {
        "available": True,
        "device_count": torch.cuda.device_count(),
        "devices": [gpu_info(index) for index in range(torch.cuda.device_count())],
    }


def gpu_info(index: int) -> dict[str, Any]:
    """One CUDA device in that shape; the process keeps a few hundred MB on it from then on."""
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "index": index,
        "name": properties.name,
        "total_memory_gb": total / _GB,
        "allocated_memory_gb": torch.cuda.memory_allocated(index) / _GB,
        "free_memory_gb": free / _GB,
        "multi_processor_count": properties.multi_processor_count,
    }


def sixteen_bit(device: torch.device) -> torch.dtype | None:
    """The 16-bit type that a device computes well in, or None: weights, autocast and precision all follow it.

    On MPS it is bf16 from macOS 14 on, the first that has the type (docs/decisions/0068).
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.bfloat16 if torch.backends.mps.is_macos_or_newer(14, 0) else torch.float16
    return torch.bfloat16 if device.type != "cpu" or cpu_has_bf16() else None


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as messages and configurations write it: bfloat16, not torch.bfloat16."""
    return str(dtype).removeprefix("torch.")


def clear_gpu_memory() -> None:
    """Frees what nothing refers to any more, on CUDA and MPS; harmless on a CPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


def set_memory_fraction(fraction: float = 0.9) -> None:
    """The share of GPU memory that this process may use.

    Raises:
        ConfigError: a fraction that is not above 0 and at most 1.
    """
    given: Any = fraction  # whatever it is
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) <= 1:
        raise ConfigError(
            f"fraction が {fraction!r} です。0 より大きく 1 以下にしてください。",
            f"fraction is {fraction!r}; it must be above 0 and at most 1.",
        )
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(fraction, index)
    elif torch.backends.mps.is_available():
        torch.mps.set_per_process_memory_fraction(fraction)
    else:
        notice("GPU がないため、メモリー上限の設定は何もしません。", "there is no GPU: the memory limit has no effect.")


def own_gpu() -> int | None:
    """The number of the GPU that this process computes on; None before it has used CUDA."""
    used: Callable[[], bool] = torch.cuda.is_initialized
    return torch.cuda.current_device() if used() else None


def free_memory_bytes(device: torch.device) -> int:
    """Memory that a run could take on a device.

    Unless it is the GPU that this process computes on already, the driver's management library is asked where it is
    sure to mean the same card: to ask CUDA would take a few hundred MB on that GPU, which the process never gives back.
    """
    if device.type == "cuda":
        own = own_gpu()
        known = None if own is not None and device.index in (None, own) else nvml.free_bytes(device.index or 0)
        return known if known is not None else int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


# What torch's allocator on GPUs reads before it is used first; the second name is the older one.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def let_segments_grow() -> None:
    """Asks torch's GPU allocator for segments that grow, here and in processes that are started from here.

    Rows without padding have another length in every step, which leaves fixed segments full of holes. A setting of the
    user's is left alone; without a GPU nothing reads it.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in _ALLOCATOR):
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"


@contextlib.contextmanager
def computing_on(device: torch.device, *, mixed_precision: bool) -> Iterator[None]:
    """Around a run: peaks of GPU memory count from its beginning, and the fp32 products that mixed precision leaves
    take the fast units (TF32). Plain fp32 stays exact (docs/decisions/0110). A CPU's heap keeps what bf16 steps free.
    """
    if device.type != "cuda":
        with heap.kept() if device.type == "cpu" and mixed_precision else contextlib.nullcontext():
            yield
        return
    if own_gpu() is not None:
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    before = torch.get_float32_matmul_precision()
    if mixed_precision:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def peak_bytes(device: torch.device) -> int:
    """The most memory that a run had: of its fullest GPU what the allocator reserved, which is what runs out, and not
    only what tensors took of it; else resident memory of the process.
    """
    if device.type == "cuda":
        return max(int(torch.cuda.max_memory_reserved(index)) for index in range(torch.cuda.device_count()))
    return peak_memory_bytes()


def peak_memory_bytes() -> int:
    """The most resident memory that this process has had."""
    try:
        import resource
    except ImportError:  # Windows
        memory: Any = psutil.Process().memory_info()  # its fields differ by system
        return int(memory.peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def memory_growth(device: torch.device, work: Callable[[], Any]) -> int | None:
    """Bytes that a piece of work held at its peak beyond what was held before it.

    On CUDA what the device's allocator gave; on Linux resident memory of the process, whose recorded peak is reset for
    it; None elsewhere.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    gc.collect()
    try:
        # Else the work could use heap that was freed but not given back, and nothing would grow.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except (OSError, AttributeError, TypeError):
        return None
    before = int(psutil.Process().memory_info().rss)
    work()
    return max(0, peak_memory_bytes() - before)


@functools.lru_cache(maxsize=1)
def cpu_flags() -> frozenset[str]:
    """The processor's feature flags (Linux; empty elsewhere)."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return frozenset()
    for line in info.read_text(encoding="utf-8").splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bf16 matrices by instruction (AVX512-BF16, AMX, Arm BF16)."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"})
