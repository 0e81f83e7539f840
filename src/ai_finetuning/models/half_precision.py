"""Models that were made in bf16, on devices that have fp16 only: its largest number is 65,504."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError, Reason

# Families whose hidden states are known to go beyond it (Gemma's documentation and transformers' advise bf16 or fp32).
_OVERFLOWING = ("gemma",)


def validate_fp16(config: Any) -> None:
    """Refuses to compute a model in fp16 that overflows there.

    Args:
        config: the model's transformers configuration.

    Raises:
        ModelError: with the way out.
    """
    family = str(getattr(config, "model_type", ""))
    if family.startswith(_OVERFLOWING):
        raise ModelError(
            f"{family} は fp16 では途中の値があふれて学習できません。この実行は fp16 で計算する設定です（bf16 を計算できない GPU か、precision: fp16）。"
            "bf16 を計算できる GPU（Ampere 以降）を使うか、training.runtime.precision: fp32 と model.dtype: float32 にしてください。",
            f"{family} overflows in fp16 and cannot be trained in it, and this run would compute in fp16 (a GPU without bf16, "
            "or precision: fp16). Use a GPU with bf16 (Ampere or later), or set training.runtime.precision: fp32 and "
            "model.dtype: float32.",
        )


def risk_of_fp16(config: Any) -> Reason | None:
    """Why a model may not train well in fp16: it was made in bf16. None where nothing says so."""
    made_in = getattr(config, "dtype", None)
    if made_in not in (torch.bfloat16, "bfloat16"):
        return None
    return Reason(
        "このモデルは bf16 で作られていますが、fp16 で計算します。値があふれて見送られるステップ（skipped）が増え続けるなら、training.runtime.precision: fp32 と model.dtype: "
        "float32 にしてください。",
        "the model was made in bf16 and is computed in fp16. If skipped steps keep growing in number, its values overflow: set "
        "training.runtime.precision: fp32 and model.dtype: float32.",
    )
