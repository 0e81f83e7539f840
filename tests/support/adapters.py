"""Adapters that change what a model says, made at once: nothing is trained."""

from __future__ import annotations

from typing import Any

import torch

from ai_finetuning.models.adapters import add_lora


def with_changing_adapter(model: Any, *, alpha: int = 64, spread: float = 0.1, seed: int = 1) -> Any:
    """The model with a LoRA adapter of rank 4 whose B is drawn where a fresh one has zeros.

    Args:
        spread: standard deviation of B's elements.
    """
    torch.manual_seed(seed)
    wrapped = add_lora(model, r=4, alpha=alpha)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, spread)
    return wrapped
