"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.models.base_model import BaseModel

__all__ = ["BaseModel"]
