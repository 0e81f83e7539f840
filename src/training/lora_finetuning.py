"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.training.lora_finetuning import LoRAFinetuningTrainer

from ai_finetuning.config.lora import LoRAConfig

__all__ = ["LoRAConfig", "LoRAFinetuningTrainer"]
