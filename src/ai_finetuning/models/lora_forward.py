"""The forward pass of layers with a LoRA adapter, with less traffic than peft's own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ._upstream import cast_lora_input
from .quantized import linear_modules


def lighten(model: nn.Module, device_type: str = "cuda") -> None:
    """Replaces the forward of adapted linear layers by a lighter one that computes the same; changes the model.

    - Bases of bitsandbytes in 4 bit, everywhere: peft 0.19 to 0.21 copies their output, for sums that would be written
      into it; its sum makes a new tensor, so that without the copy no bit changes.
    - Under autocast on `device_type`: the product with B is scaled and added to the base's output by the product itself.
      peft makes three tensors of the output's size for that, and one more in the backward pass. Sums are rounded once
      instead of three times.

    Variants such as DoRA, adapters that are switched off or merged, and calls with further arguments go through peft's own
    forward.
    """
    from peft.tuners.lora import LoraLayer

    quantized = {id(module) for module in linear_modules(model, 4)}
    for module in model.modules():
        if not isinstance(module, LoraLayer) or "forward" in module.__dict__:
            continue
        four_bit = id(module.base_layer) in quantized
        if four_bit or type(module.base_layer) is nn.Linear:
            module.forward = partial(_forward, module, module.forward, four_bit, device_type)


def _forward(
    layer: Any, original: Any, four_bit: bool, device_type: str, x: Tensor, *arguments: Any, **options: Any
) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    usual = not (arguments or options or layer.disable_adapters or layer.merged)
    if usual and not any(name in layer.lora_variant for name in names):
        if x.device.type == device_type and torch.is_autocast_enabled(device_type) and _addable(layer, names):
            return _added_in_place(layer, names, x)
        if four_bit:
            return _added(layer, names, x)
    obtained: Tensor = original(x, *arguments, **options)
    return obtained


def _addable(layer: Any, names: list[str]) -> bool:
    """Whether B is a whole matrix and no more; ZeRO-3 fills it when its own module is called."""
    ups = [layer.lora_B[name] for name in names]
    return all(up.bias is None and up.weight.dim() == 2 and not isinstance(up.weight, DTensor) for up in ups)


def _added_in_place(layer: Any, names: list[str], x: Tensor) -> Tensor:
    """In two dimensions: in-place sums over a view would be copied in the backward pass."""
    rows = x.reshape(-1, x.shape[-1])
    result: Tensor = layer.base_layer(rows)
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        inner = down(layer.lora_dropout[name](rows))
        result.addmm_(inner.to(result.dtype), up.weight.t().to(result.dtype), alpha=layer.scaling[name])
    return result.view(*x.shape[:-1], result.shape[-1])


def _added(layer: Any, names: list[str], x: Tensor) -> Tensor:
    """As peft computes it, to the bit."""
    result: Tensor = layer.base_layer(x)
    base_dtype, autocast = result.dtype, torch.is_autocast_enabled()  # of CUDA, whatever the device: as peft asks
    for name in names:
        down, up = layer.lora_A[name], layer.lora_B[name]
        x = x if autocast else cast_lora_input(layer, x, down.weight.dtype)
        added = up(down(layer.lora_dropout[name](x))) * layer.scaling[name]
        result = result + (added if autocast else added.to(base_dtype))
    return result
