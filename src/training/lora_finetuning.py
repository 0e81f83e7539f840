"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.trainers.lora import LoRAFinetuningTrainer

__all__ = ["LoRAConfig", "LoRAFinetuningTrainer"]
