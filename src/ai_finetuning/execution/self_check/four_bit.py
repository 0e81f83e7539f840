"""A 4-bit layer of bitsandbytes, as a QLoRA base has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...models.quantized import forbid_cpu_packing
from .results import NotHere


def four_bit_layer(weight: Tensor, device: torch.device) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The layer of a weight [outputs, inputs] without a bias, and what gives its dequantized weight.

    Raises:
        NotHere: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes.functional as functional
        import bitsandbytes.nn as layers
    except ImportError as error:
        raise NotHere("bitsandbytes がありません", "bitsandbytes is not installed") from error
    made: Any = layers  # untyped
    layer = made.Linear4bit(weight.shape[1], weight.shape[0], bias=False, compute_dtype=weight.dtype, quant_type="nf4")
    layer.weight = made.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer)
    holder = nn.Sequential(layer).to(device)
    forbid_cpu_packing(holder)

    def dequantized() -> Tensor:
        unpacked: Tensor = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        return unpacked

    return holder, dequantized
