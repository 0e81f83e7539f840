"""What a run ran on: versions, processor, GPUs, memory, disk, locale."""

from __future__ import annotations

import importlib.metadata
import locale
import os
import platform
import sys
from typing import Any

import psutil
import torch

from . import nvml
from .cores import physical_cores
from .gpu import cpu_flags, cpu_has_bf16, get_available_device, get_gpu_memory_info, gpu_info, own_gpu
from .machine import cpu_name

PACKAGES = (
    "ai-finetuning-toolkit",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "torchao",
    "safetensors",
    "tokenizers",
    "sentencepiece",
    "datasets",
    "pydantic",
    "numpy",
)
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "bf16", "sve")


def versions() -> dict[str, str | None]:
    """Installed versions; None where a package is missing."""
    obtained: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            obtained[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            obtained[name] = None
    return obtained


def environment() -> dict[str, Any]:
    """Everything that may explain a run's numbers; no secret is among it."""
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": {
            "name": cpu_name(),
            "cores": physical_cores(),
            "flags": sorted(cpu_flags() & set(_FLAGS)),
            "bf16": cpu_has_bf16(),
        },
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "device": str(get_available_device()),
        "gpu": _gpus(),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "locale": {
            "LANG": os.environ.get("LANG", ""),
            "preferred_encoding": locale.getpreferredencoding(False),
            "stdout_encoding": getattr(sys.stdout, "encoding", None),
        },
    }


def _gpus() -> dict[str, Any]:
    """GPUs in the shape of get_gpu_memory_info(), asked of the driver; of torch where no NVIDIA driver answers.

    Of torch a process that computes on a GPU asks for that one only: each GPU that it asks about keeps memory for it.
    `available` says whether torch uses them: without it a build of torch for CPUs, or a driver too old, is the reason.
    """
    obtained = nvml.gpus()
    own = own_gpu()
    if not obtained and own is not None:
        return {"available": True, "device_count": torch.cuda.device_count(), "devices": [gpu_info(own)]}
    if not obtained:
        return get_gpu_memory_info()
    return {
        "available": get_available_device().type == "cuda",
        "device_count": len(obtained),
        "devices": [
            {
                "index": gpu.index,
                "name": gpu.name,
                "total_memory_gb": gpu.total_bytes / 1e9,
                "free_memory_gb": gpu.free_bytes / 1e9,
            }
            for gpu in obtained
        ],
    }
