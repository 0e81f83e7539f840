"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.models.japanese_model import JapaneseModel, SUPPORTED_MODELS

__all__ = ["JapaneseModel", "SUPPORTED_MODELS"]
