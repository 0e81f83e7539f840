"""Activation checkpointing of transformers models under its old and its new name.

transformers 6 drops `gradient_checkpointing_enable` for `activation_checkpointing_enable`; the second name of each pair
goes when the floor has the first.
"""

from __future__ import annotations

from typing import Any


def enable_activation_checkpointing(model: Any) -> bool:
    """Recomputes activations in the backward pass (arXiv:1604.06174); False where the model cannot."""
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    elif hasattr(model, "gradient_checkpointing_enable"):
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    else:
        return False
    model.config.use_cache = False
    return True


def disable_activation_checkpointing(model: Any) -> None:
    """Takes it back, on an adapter's base too, and allows the cache of generation again."""
    for module in (model, getattr(model, "base_model", None)):
        disable = getattr(module, "activation_checkpointing_disable", None) or getattr(
            module, "gradient_checkpointing_disable", None
        )
        if disable is not None:
            disable()
            break
    model.config.use_cache = True
