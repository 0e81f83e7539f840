"""What a machine says of itself, as far as it decides how a run computes."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import Any

import torch

from ...system import nvml
from ...system.gpu import chosen_device, dtype_name, free_memory_bytes, get_available_device, sixteen_bit
from ...system.machine import cpu_name


def key_of(device: torch.device) -> dict[str, str]:
    """What a record of checks holds for: the device's name, its driver and the build of torch."""
    if device.type == "cuda":
        # Of the driver, as torch would take memory on the GPU for the answer.
        cards, index = nvml.gpus(), device.index or 0
        name = cards[index].name if index < len(cards) else torch.cuda.get_device_name(device)
        driver = nvml.driver() or ""
    else:
        name, driver = cpu_name() if device.type == "cpu" else device.type, platform.release()
    return {"device": name, "driver": driver, "torch": torch.__version__}


def device_to_check(name: str | None) -> torch.device:
    """The device that was named, else the best; one GPU of several, so that no run takes them all.

    Raises:
        ConfigError: no such device here.
    """
    device = chosen_device(name) or get_available_device()
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def facts(device: torch.device) -> dict[str, Any]:
    """The facts; what a machine without a GPU has not is None."""
    best = sixteen_bit(device)
    obtained: dict[str, Any] = key_of(device) | {
        "type": device.type,
        "sixteen_bit": None if best is None else dtype_name(best),
        "free_bytes": free_memory_bytes(device),
        "triton": _version("triton"),
        "bitsandbytes": _version("bitsandbytes"),
        "flash_attn": _version("flash-attn"),
        # Triton compiles the code that starts its kernels.
        "compiler": next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None),
    }
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        nccl: Any = torch.cuda.nccl  # untyped
        obtained |= {
            "gpus": torch.cuda.device_count(),
            "capability": f"{properties.major}.{properties.minor}",
            "total_bytes": int(properties.total_memory),
            "cuda": torch.version.cuda,
            "nccl": ".".join(map(str, nccl.version())) if torch.distributed.is_nccl_available() else None,
            "tf32": properties.major >= 8,
        }
    return obtained


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
