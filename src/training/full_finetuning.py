"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.training.full_finetuning import FullFinetuningTrainer

__all__ = ["FullFinetuningTrainer"]
