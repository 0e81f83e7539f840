"""NVIDIA GPUs as the driver's management library (NVML) tells them: no torch, no CUDA context, so no GPU memory.

Where there is no driver, no NVIDIA GPU or no `nvidia-ml-py`, there are none.
"""

from __future__ import annotations

import functools
import os
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use.

    Attributes:
        index: its number for CUDA programs that are started here, as in `cuda:0`.
        free_bytes: memory that no process holds at this moment.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int


def gpus(nvml: Any = None, visible: str | None = None) -> list[Gpu]:
    """The GPUs of this machine that CUDA_VISIBLE_DEVICES leaves, in its order.

    CUDA numbers cards of different models fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID; NVML always by bus. On
    machines with one model of card the two agree.

    Args:
        nvml: a module with pynvml's functions; None takes pynvml.
        visible: in place of CUDA_VISIBLE_DEVICES.
    """
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if nvml is None:
        if not _has_library():  # a PC without a GPU imports no bindings of 2 MiB
            return []
        try:
            import pynvml
        except ImportError:
            return []
        nvml = pynvml
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        handles = _visible(nvml, visible)
        return [_gpu(nvml, index, handle) for index, handle in enumerate(handles)]
    except nvml.NVMLError:  # a GPU that fell off the bus, a driver that was replaced while it was loaded
        return []
    finally:
        nvml.nvmlShutdown()


@functools.cache
def _has_library() -> bool:
    """Whether the driver's library is here, by the name under which pynvml looks for it on Linux."""
    if not sys.platform.startswith("linux"):
        return True
    import ctypes

    try:
        ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return False
    return True


def driver() -> str | None:
    """The version of the NVIDIA driver; None without one."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # ImportError, or pynvml's own where there is no driver
        return None
    try:
        return _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()


def free_bytes(index: int, known: list[Gpu] | None = None) -> int | None:
    """Free memory of `cuda:index`; None where NVML does not tell, or may mean another card by that number.

    Args:
        known: in place of gpus().
    """
    cards = gpus() if known is None else known
    by_bus = os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len({card.name for card in cards}) == 1
    return cards[index].free_bytes if by_bus and index < len(cards) else None


def _gpu(nvml: Any, index: int, handle: Any) -> Gpu:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(index, _text(nvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))


def _visible(nvml: Any, visible: str | None) -> list[Any]:
    """Handles in CUDA's order; as CUDA does, everything from the first entry on that names no GPU is left out."""
    every = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return every
    numbers: list[int | str] = []
    for entry in (item.strip() for item in visible.split(",")):
        obtained = _number(nvml, every, entry)
        if obtained is None:
            break
        if obtained in numbers:  # CUDA sees no GPU at all then
            return []
        numbers.append(obtained)
    return [every[item] if isinstance(item, int) else nvml.nvmlDeviceGetHandleByUUID(item) for item in numbers]


def _number(nvml: Any, every: list[Any], entry: str) -> int | str | None:
    """The index of the GPU that an entry names, the name itself of a MIG part, or None."""
    if entry.isascii() and entry.isdigit():
        return int(entry) if int(entry) < len(every) else None
    if entry.startswith("MIG-"):
        try:
            nvml.nvmlDeviceGetHandleByUUID(entry)
        except nvml.NVMLError:
            return None
        return entry
    if not entry.startswith("GPU-"):
        return None
    fits = [index for index, handle in enumerate(every) if _text(nvml.nvmlDeviceGetUUID(handle)).startswith(entry)]
    return fits[0] if len(fits) == 1 else None


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
