"""A model spread over several devices of one process: where its modules lie, and what carries tensors between them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ._upstream import has_accelerate_hooks

# Module name -> device; every weight lies under exactly one of the names.
DeviceMap = Mapping[str, torch.device]


def spread(model: Any, device_map: DeviceMap) -> None:
    """Lays a model out by a map, in place, and lets tensors follow it; a second call with the same map changes nothing.

    Forward hooks of our own, not accelerate's: those take every argument to the first device, `logits_to_keep` too,
    which has to be where the hidden states end, and bring all logits back (docs/decisions/0016).

    Args:
        model: a transformers causal LM, inside any adapter; on the CPU, or loaded with the same map.
        device_map: as parallel/strategies/device_map.py makes it; the final norm lies beside the head.

    Raises:
        ModelError: the map keeps weights on the CPU or on disk.
    """
    validate_offloading(device_map)
    _remove_accelerate_hooks(model)
    for handle in getattr(model, "aift_carriers", ()):
        handle.remove()
    modules = {name: model.get_submodule(name) for name in device_map}
    for name, module in modules.items():
        _move(module, device_map[name])
    first = next(iter(device_map.values()))
    # The decoder makes masks and positions from its inputs before any block runs.
    carried = {id(model.get_decoder()): (model.get_decoder(), first)}
    carried |= {id(module): (module, device_map[name]) for name, module in modules.items()}
    model.aift_carriers = [
        module.register_forward_pre_hook(partial(_carry, device=device), with_kwargs=True)
        for module, device in carried.values()
    ]
    model.hf_device_map = dict(device_map)


def validate_offloading(device_map: Mapping[str, Any]) -> None:
    """Refuses maps that keep weights on the CPU or on disk beside a GPU.

    Raises:
        ModelError: such a model trains wrongly without an error: 18 of 39 weights got no gradient
            (docs/design/distributed.md).
    """
    away = {name: str(place) for name, place in device_map.items() if str(place) in ("cpu", "disk", "meta")}
    if not away:
        return
    name, place = next(iter(away.items()))
    raise ModelError(
        f"device_map の {len(away)} 個のモジュールが GPU の外にあります（例: {name} → {place}）。このままでは一部の重みに勾配が届かないため学習しません。"
        "max_memory_per_gpu を増やすか、GPU を増やすか、method: qlora を使ってください。",
        f"device_map keeps {len(away)} modules outside the GPUs (for example {name} -> {place}); some weights "
        "would get no gradient. Raise max_memory_per_gpu, use more GPUs, or method: qlora.",
    )


def _remove_accelerate_hooks(model: nn.Module) -> None:
    """transformers puts them on when it loads with a map of several devices."""
    if has_accelerate_hooks(model):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)


def _move(module: nn.Module, device: torch.device) -> None:
    held = (*module.parameters(), *module.buffers())
    if any(tensor.device != device for tensor in held):
        module.to(device)


def _carry(_: nn.Module, args: Any, kwargs: Any, *, device: torch.device) -> tuple[Any, Any]:
    """The arguments of a forward pass on the module's device."""
    return _to(args, device), _to(kwargs, device)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value if value.device == device else value.to(device, non_blocking=True)
    if type(value) in (tuple, list):
        return type(value)(_to(item, device) for item in value)
    if type(value) is dict:
        return {key: _to(item, device) for key, item in value.items()}
    return value
