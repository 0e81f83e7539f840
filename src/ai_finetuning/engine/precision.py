"""What `fp16=True` and `precision` mean on this machine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..system.gpu import sixteen_bit

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """How the forward pass computes."""

    name: str
    reason_ja: str
    reason_en: str

    @property
    def autocast(self) -> torch.dtype | None:
        """The dtype of autocast, or None for plain fp32."""
        return _DTYPES[self.name]

    @property
    def scaler(self) -> bool:
        """Whether gradients need scaling (fp16 only)."""
        return self.name == "fp16"


def resolve_precision(requested: str, *, fp16: bool, device: torch.device) -> Precision:
    """The precision that suits the device; see precision_for."""
    return precision_for(requested, fp16=fp16, device=device, best=sixteen_bit(device))


def precision_for(requested: str, *, fp16: bool, device: torch.device, best: torch.dtype | None) -> Precision:
    """The precision that suits a device, which need not be on this machine.

    Args:
        requested: `auto` follows `fp16`; `fp32`, `bf16` and `fp16` are taken where the device can.
        fp16: the documented flag, understood as "mixed precision".
        device: where the run computes.
        best: the 16-bit type that it computes well in, or None.
    """
    if requested == "fp32" or (requested == "auto" and not fp16):
        return Precision("fp32", "fp32 で計算します。", "computing in fp32.")
    if device.type == "cpu":
        if best is torch.bfloat16:
            asked = "" if requested == "bf16" else "（CPU の fp16 は遅いため）"
            because = "" if requested == "bf16" else " (fp16 is slow on a CPU)"
            return Precision("bf16", f"混合精度は bf16 で計算します{asked}。", f"mixed precision in bf16{because}.")
        return Precision(
            "fp32",
            "この CPU には bf16 命令がないため fp32 で計算します。",
            "computing in fp32: this CPU has no bf16 instructions.",
        )
    # On MPS gradients are not scaled, so fp16 is no choice there.
    if best is torch.bfloat16 and ((device.type == "cuda" and requested != "fp16") or device.type == "mps"):
        return Precision("bf16", "混合精度は bf16 で計算します。", "mixed precision in bf16.")
    if device.type == "cuda":
        asked = "" if requested != "bf16" else "この GPU は bf16 を計算できないため、"
        because = "" if requested != "bf16" else "this GPU has no bf16: "
        return Precision(
            "fp16",
            f"{asked}混合精度は fp16 と勾配スケーリングで計算します。",
            f"{because}mixed precision in fp16 with gradient scaling.",
        )
    return Precision("fp32", f"{device.type} では fp32 で計算します。", f"computing in fp32 on {device.type}.")
