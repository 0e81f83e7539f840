"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.models.japanese_model import SUPPORTED_MODELS, JapaneseModel

__all__ = ["JapaneseModel", "SUPPORTED_MODELS"]
