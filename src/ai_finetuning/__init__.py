"""AI Fine-tuning Toolkit: fine-tunes Japanese language models.

The public names are imported when they are first used, so that `import ai_finetuning` stays fast.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_PUBLIC = {
    "BaseModel": "models.base_model",
    "JapaneseModel": "models.japanese_model",
    "SUPPORTED_MODELS": "models.japanese_model",
    "TrainingConfig": "config.training",
    "MultiGPUTrainingConfig": "config.training",
    "LoRAConfig": "config.lora",
    "DataConfig": "config.data",
    "ModelConfig": "config.model",
    "RunConfig": "config.run",
    "PreferenceConfig": "config.preference",
    "OptimizerConfig": "config.sections",
    "ScheduleConfig": "config.sections",
    "CheckpointConfig": "config.sections",
    "RuntimeConfig": "config.sections",
    "EvaluationConfig": "config.sections",
    "TextDataset": "data.text_dataset",
    "FullFinetuningTrainer": "trainers.full",
    "LoRAFinetuningTrainer": "trainers.lora",
    "AdvancedMultiGPUTrainer": "trainers.multi_gpu",
    "PreferenceTrainer": "trainers.preference",
    "QuantizationOptimizer": "convert.quantize",
    "get_available_device": "system.gpu",
    "get_gpu_memory_info": "system.gpu",
    "optimize_model_for_gpu": "models.to_device",
    "clear_gpu_memory": "system.gpu",
    "set_memory_fraction": "system.gpu",
    "ToolkitError": "errors",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'ai_finetuning' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_PUBLIC[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
