"""Documented import path `src.models`: every name, imported when first used."""

import importlib

_PUBLIC = {
    "BaseModel": "base_model",
    "JapaneseModel": "japanese_model",
    "SUPPORTED_MODELS": "japanese_model",
}

__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
