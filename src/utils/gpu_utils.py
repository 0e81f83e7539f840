"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.models.to_device import optimize_model_for_gpu
from ai_finetuning.system.gpu import clear_gpu_memory, get_available_device, get_gpu_memory_info, set_memory_fraction

__all__ = [
    "clear_gpu_memory",
    "get_available_device",
    "get_gpu_memory_info",
    "optimize_model_for_gpu",
    "set_memory_fraction",
]
