"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.config.training import MultiGPUTrainingConfig
from ai_finetuning.training.multi_gpu_training import AdvancedMultiGPUTrainer

__all__ = ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"]
