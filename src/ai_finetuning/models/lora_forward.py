"""The forward pass of layers with a LoRA adapter, with less traffic than peft's own."""

from __future__ import annotations

from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ..kernels.lora import Adapter, adapted_linear
from ._upstream import cast_lora_input, cast_together, in_backward
from .parts import unwrapped
from .quantized import linear_modules


def lighten(model: nn.Module, device_type: str = "cuda", *, one_operation: bool = True) -> None:
    """Replaces the forward of adapted linear layers by a lighter one that computes the same; changes the model.

    - Bases of bitsandbytes in 4 bit, everywhere: peft 0.19 to 0.21 copies their output, for sums that would be written
      into it; its sum makes a new tensor, so that without the copy no bit changes.
    - Under autocast on `device_type`, with `one_operation`: base and adapter are one operation (kernels/lora.py), and the
      adapters' weights are cast for all layers together, once in a pass forward.

    Variants such as DoRA, adapters that are switched off or merged, bases that train something, and calls with further
    arguments go through peft's own forward.
    """
    from peft.tuners.lora import LoraLayer

    quantized = {id(module) for module in linear_modules(model, 4)}
    layers: list[Any] = []
    casts = _Casts(layers, device_type)
    for module in model.modules():
        if not isinstance(module, LoraLayer) or "forward" in module.__dict__:
            continue
        four_bit = id(module.base_layer) in quantized
        if four_bit or type(module.base_layer) is nn.Linear:
            layers.append(module)
            module.forward = partial(_forward, module, module.forward, four_bit, casts if one_operation else None)
    decoder = getattr(unwrapped(model), "get_decoder", lambda: None)()
    if layers and one_operation and decoder is not None:
        decoder.register_forward_pre_hook(casts.begin)
        decoder.register_forward_hook(casts.end, always_call=True)


class _Casts:
    """The adapters' weights in 16 bit, for one pass forward of the whole decoder and the pass backward that follows.

    A pass forward makes them anew, so that no change of a weight can be missed. Layers that are called otherwise (stages
    of a pipeline) cast theirs themselves.
    """

    def __init__(self, layers: list[Any], device_type: str) -> None:
        self.device_type = device_type
        self._layers = layers
        self._made: WeakKeyDictionary[Any, tuple[Tensor, Tensor]] = WeakKeyDictionary()
        self._forward = False

    def computes_in(self) -> torch.dtype | None:
        """The dtype of products under autocast; None without it."""
        on = torch.is_autocast_enabled(self.device_type)
        return torch.get_autocast_dtype(self.device_type) if on else None

    def begin(self, *_: Any) -> None:
        """The decoder begins."""
        dtype = self.computes_in()
        self._made.clear()
        self._forward = dtype is not None
        if dtype is None:
            return
        parts = {layer: part for layer in self._layers if (part := _adapter(layer)) is not None}
        wide = [weight.detach() for part in parts.values() for weight in part[:2]]
        if not wide:
            return
        narrow = cast_together(wide, dtype)
        self._made.update(zip(parts, zip(narrow[::2], narrow[1::2], strict=True), strict=True))

    def end(self, *_: Any) -> None:
        """The decoder has come to its end; what follows may be its pass backward."""
        self._forward = False
        if not torch.is_grad_enabled():
            self._made.clear()

    def of(self, layer: Any, down: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A layer's two matrices in a dtype."""
        made = self._made.get(layer) if self._forward or in_backward() else None
        if made is not None and made[0].dtype is dtype:
            return made
        return down.detach().to(dtype), up.detach().to(dtype)


def _forward(
    layer: Any, original: Any, four_bit: bool, casts: _Casts | None, x: Tensor, *arguments: Any, **options: Any
) -> Tensor:
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    usual = not (arguments or options or layer.disable_adapters or layer.merged)
    if usual and not any(name in layer.lora_variant for name in names):
        dtype = casts.computes_in() if casts is not None and x.device.type == casts.device_type else None
        if dtype is not None and casts is not None and (adapter := _adapter(layer)) is not None:
            return _in_one(layer, adapter, casts, x.to(dtype))
        if four_bit:
            return _added(layer, names, x)
    obtained: Tensor = original(x, *arguments, **options)
    return obtained


def _adapter(layer: Any) -> tuple[Tensor, Tensor, float, float] | None:
    """A, B, scale and dropout of a layer's only adapter, where it is two whole matrices on a base that does not train; ZeRO-3
    and FSDP bring weights when modules are called, and tensor parallelism cuts them.
    """
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    if len(names) != 1:
        return None
    down, up, drop = layer.lora_A[names[0]], layer.lora_B[names[0]], layer.lora_dropout[names[0]]
    base = list(layer.base_layer.parameters(recurse=False))
    whole = all(weight.dim() == 2 and not isinstance(weight, DTensor) for weight in (down.weight, up.weight, base[0]))
    if not whole or down.bias is not None or up.bias is not None or any(weight.requires_grad for weight in base):
        return None
    if not isinstance(drop, nn.Identity | nn.Dropout):
        return None
    dropout = drop.p if isinstance(drop, nn.Dropout) and drop.training else 0.0
    return (down.weight, up.weight, float(layer.scaling[names[0]]), dropout) if dropout < 1 else None


def _in_one(layer: Any, adapter: tuple[Tensor, Tensor, float, float], casts: _Casts, x: Tensor) -> Tensor:
    down, up, scale, dropout = adapter
    rows, base = x.reshape(-1, x.shape[-1]), layer.base_layer
    whole = partial(_whole, getattr(base.weight, "quant_state", None))
    taken = Adapter(down, up, casts.of(layer, down, up, x.dtype), scale, dropout)
    result = adapted_linear(rows, base, base.weight, taken, whole=whole)
    return result.view(*x.shape[:-1], result.shape[-1])


def _whole(state: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A base's weight as a matrix; `state`: how bitsandbytes has packed it in 4 bit, or None."""
    if state is None:
        return weight.to(dtype)
    from bitsandbytes.functional import dequantize_4bit

    unpacked: Tensor = dequantize_4bit(weight, state)
    return unpacked.to(dtype)


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
