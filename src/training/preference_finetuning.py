"""Import path beside the documented ones; the objects are those of ai_finetuning."""

from ai_finetuning.config.preference import PreferenceConfig
from ai_finetuning.trainers.preference import PreferenceTrainer

__all__ = ["PreferenceConfig", "PreferenceTrainer"]
