"""Weights and optimizer state as tensors under parameter names: what a checkpoint holds, and how it is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# By group, `model` and `optimizer`, then by name.
Tensors = dict[str, dict[str, Tensor]]


def validate_names(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Refuses weights of other names.

    Raises:
        ValueError: with the first of them.
    """
    missing = sorted(parameters.keys() ^ saved.keys())
    if missing:
        raise ValueError(f"names differ between model and checkpoint: {', '.join(missing[:5])}")


@torch.no_grad()
def load_weights(parameters: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    """Copies saved weights into parameters of the same names; both must have the same names."""
    validate_names(parameters, saved)
    for name, parameter in parameters.items():
        parameter.copy_(saved[name])


def _named_states(optimizer: torch.optim.Optimizer) -> Iterable[tuple[str, nn.Parameter]]:
    for group in optimizer.param_groups:
        yield from zip(group["names"], group["params"], strict=True)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as `<parameter name>/<key>`; numbers become 0-d tensors."""
    tensors = {}
    for name, parameter in _named_states(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], loaded: Callable[[nn.Parameter], None] | None = None
) -> None:
    """Puts a state of optimizer_tensors() back; keys that were numbers become numbers again.

    Args:
        loaded: told of every weight whose state is there, to move it away before that of the next one is loaded.
    """
    eight_bit = type(optimizer).__module__.startswith("bitsandbytes")
    states: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = tensor
    for name, parameter in _named_states(optimizer):
        if name not in states:
            continue
        state = optimizer.state[parameter]
        for part, tensor in states[name].items():
            if eight_bit and part == "step":
                state[part] = int(tensor.item())
            else:
                state[part] = tensor.clone().to(
                    "cpu" if part == "step" and not _on_device(optimizer) else parameter.device
                )
        if loaded is not None:
            loaded(parameter)


def _on_device(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step` lives beside the parameters (fused and capturable optimizers)."""
    return any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
