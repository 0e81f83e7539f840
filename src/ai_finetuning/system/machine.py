"""This PC in a glance, without torch: processor, memory, GPUs."""

from __future__ import annotations

import platform
from dataclasses import dataclass

import psutil

from . import nvml
from .cores import physical_cores
from .nvml import Gpu


@dataclass(frozen=True)
class Machine:
    """What there is to train with; memory in bytes."""

    cpu: str
    cores: int
    memory_bytes: int
    free_memory_bytes: int
    gpus: tuple[Gpu, ...]

    @property
    def room(self) -> int:
        """Memory that a model may take now: that of the GPU with the most free, else of the PC."""
        return max((gpu.free_bytes for gpu in self.gpus), default=self.free_memory_bytes)


def machine() -> Machine:
    """This PC at this moment."""
    memory = psutil.virtual_memory()
    return Machine(cpu_name(), physical_cores(), int(memory.total), int(memory.available), tuple(nvml.gpus()))


def cpu_name() -> str:
    """What the processor calls itself."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
