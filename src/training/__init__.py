"""Documented import path `src.training`: every name, imported when first used."""

import importlib

_PUBLIC = {
    "TrainingConfig": "training_utils",
    "TextDataset": "training_utils",
    "FullFinetuningTrainer": "full_finetuning",
    "LoRAConfig": "lora_finetuning",
    "LoRAFinetuningTrainer": "lora_finetuning",
    "MultiGPUTrainingConfig": "multi_gpu_training",
    "AdvancedMultiGPUTrainer": "multi_gpu_training",
    "PreferenceConfig": "preference_finetuning",
    "PreferenceTrainer": "preference_finetuning",
    "QuantizationOptimizer": "quantization",
}

__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)
