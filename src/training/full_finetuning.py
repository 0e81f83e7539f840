"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.trainers.full import FullFinetuningTrainer

__all__ = ["FullFinetuningTrainer"]
