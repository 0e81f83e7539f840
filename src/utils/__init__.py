"""Documented import path `src.utils`: every name, imported when first used."""

import importlib

_PUBLIC = {
    "clear_gpu_memory": "gpu_utils",
    "get_available_device": "gpu_utils",
    "get_gpu_memory_info": "gpu_utils",
    "optimize_model_for_gpu": "gpu_utils",
    "set_memory_fraction": "gpu_utils",
}

__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
