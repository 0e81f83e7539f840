"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.config.training import TrainingConfig
from ai_finetuning.data.text_dataset import TextDataset

__all__ = ["TextDataset", "TrainingConfig"]
