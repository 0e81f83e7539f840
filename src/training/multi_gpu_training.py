"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.config.training import MultiGPUTrainingConfig
from ai_finetuning.trainers.multi_gpu import AdvancedMultiGPUTrainer

__all__ = ["AdvancedMultiGPUTrainer", "MultiGPUTrainingConfig"]
