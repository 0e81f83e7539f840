"""Models that were made in bf16, on devices that have fp16 only: its largest number is 65,504."""

from __future__ import annotations

from typing import Any

import torch

from ..errors import ModelError, Reason
from ..messages import notice, warn

# Families whose hidden states are known to go beyond it (Gemma's documentation and transformers' advise bf16 or fp32).
_OVERFLOWING = ("gemma",)


def overflows(family: str) -> bool:
    """Whether models of a family (model_type) are known to go beyond fp16."""
    return family.startswith(_OVERFLOWING)


def without_overflow(dtype: torch.dtype, family: str, *, asked: bool) -> torch.dtype:
    """The dtype to load weights in: fp32 instead of an fp16 that a family does not stand, with one line; what the user
    has asked for stays, with a warning.
    """
    if dtype is not torch.float16 or not overflows(family):
        return dtype
    if asked:
        warn(
            f"{family} は fp16 では途中の値があふれ、回答が壊れることがあります。dtype を float32 か bfloat16 にしてください。",
            f"{family} overflows in fp16, and its answers may be broken: set the dtype to float32 or bfloat16.",
        )
        return dtype
    notice(
        f"このデバイスは bf16 を計算できず、{family} は fp16 ではあふれるため、fp32 で読み込みます。",
        f"this device has no bf16, and {family} overflows in fp16: loading in fp32.",
    )
    return torch.float32


def validate_fp16(config: Any) -> None:
    """Refuses to compute a model in fp16 that overflows there.

    Args:
        config: the model's transformers configuration.

    Raises:
        ModelError: with the way out.
    """
    family = str(getattr(config, "model_type", ""))
    if overflows(family):
        raise ModelError(
            f"{family} は fp16 では途中の値があふれて学習できません。この実行は fp16 で計算する設定です（bf16 を計算できない GPU か、precision: fp16 か、model.dtype: float16）。"
            "bf16 を計算できる GPU（Ampere 以降）を使うか、training.runtime.precision: fp32 と model.dtype: float32 にしてください。",
            f"{family} overflows in fp16 and cannot be trained in it, and this run would compute in fp16 (a GPU without bf16, "
            "precision: fp16 or model.dtype: float16). Use a GPU with bf16 (Ampere or later), or set training.runtime.precision: fp32 and "
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
