"""Documented import path; the objects are those of ai_finetuning."""

from ai_finetuning.convert.quantize import QuantizationOptimizer

__all__ = ["QuantizationOptimizer"]
