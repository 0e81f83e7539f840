"""Packed documents must not see each other; this tests the real model before step 1."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError
from ..models._upstream import attention_name
from ..models.modes import evaluating
from ..models.parts import probe_documents

# Most relative change of the second document's logits that rounding may cause when the first document changes.
TOLERANCE = 1e-3


def leak_of_packing(model: Any, *, tokens: int = 12) -> float:
    """Relative change of a document's logits when its neighbour in a packed row changes; 0 where they are isolated.

    A leak passes without an error where a mask or a cache is given (docs/design/training-step.md), and attention
    implementations differ: so the model itself is asked.
    """
    first, other, second = probe_documents(model, (tokens,) * 3)
    positions = torch.arange(tokens, device=model.device).repeat(2)[None]
    with evaluating(model):
        answers = [
            model(
                input_ids=torch.cat([head, second], dim=1), position_ids=positions, attention_mask=None, use_cache=False
            )
            .logits[0, tokens:]
            .float()
            for head in (first, other)
        ]
    scale = float(answers[0].abs().max()) or 1.0
    return float((answers[0] - answers[1]).abs().max()) / scale


def validate_packing(model: Any, name: str, *, positions: bool = True) -> None:
    """Raises ModelError where documents of a packed row see each other, or where the model does not take `positions`, by
    which they are told apart.
    """
    if not positions:
        raise ModelError(
            f"{name} は位置（position_ids）を自分で数えるため、文書をパッキングできません。data.packing=false にしてください。",
            f"{name} counts positions (position_ids) itself, so documents cannot be packed; set data.packing=false.",
        )
    try:
        leak = leak_of_packing(model)
    except Exception as error:  # whatever a model's own code raises
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(
            f"{name} は、パッキングした行を計算できません（{type(error).__name__}: {str(error)[:200]}）。data.packing=false にしてください。",
            f"{name} cannot compute packed rows ({type(error).__name__}: {str(error)[:200]}); set data.packing=false.",
        ) from error
    if leak > TOLERANCE:
        attention = attention_name(model) or "?"
        raise ModelError(
            f"{name}（アテンション {attention}）では、パッキングした行の中で文書どうしが混ざります（変化 {leak:.1%}）。data.packing=false にするか、"
            "model.attention を sdpa か eager にしてください。",
            f"{name} (attention {attention}) lets documents of a packed row see each other (change {leak:.1%}); "
            "set data.packing=false, or model.attention to sdpa or eager.",
        )
