"""LoRA on 4-bit layers without a copy of each layer's output."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ._upstream import cast_lora_input
from .quantized import linear_modules


def without_output_copies(model: nn.Module) -> None:
    """Lets adapted layers of bitsandbytes in 4 bit add the adapter to the base's output itself; changes the model.

    peft 0.19 to 0.21 copies that output first, for sums that would be written into it; its sum makes a new tensor, so the
    copy changes no bit (448 copies and 48 GB of traffic in a step of 8B QLoRA). Variants such as DoRA, adapters that are
    switched off or merged, and calls with further arguments go through peft's own forward.
    """
    quantized = {id(module) for module in linear_modules(model, 4)}
    for module in model.modules():
        if id(getattr(module, "base_layer", None)) in quantized and "forward" not in module.__dict__:
            module.forward = partial(_forward, module, module.forward)


def _forward(layer: Any, original: Any, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if arguments or options or layer.disable_adapters or layer.merged or any(n in layer.lora_variant for n in names):
        obtained: Tensor = original(x, *arguments, **options)
        return obtained
    result: Tensor = layer.base_layer(x)
    base_dtype, autocast = result.dtype, torch.is_autocast_enabled()  # of CUDA, whatever the device: as peft asks
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        x = x if autocast else cast_lora_input(layer, x, down.weight.dtype)
        added = up(down(layer.lora_dropout[name](x))) * layer.scaling[name]
        result = result + (added if autocast else added.to(base_dtype))
    return result
