"""Weights that are read outside the forward pass of the module that holds them, while data ranks have them in parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

_METHOD = "while_gathered"


def gather_for_work(module: nn.Module) -> None:
    """Lets a sharded module gather its weights for while_gathered(), as it does for its forward pass."""
    setattr(module, _METHOD, lambda work, *inputs: work(*inputs))
    register_fsdp_forward_method(module, _METHOD)


def gathers_for_work(module: nn.Module) -> bool:
    """Whether gather_for_work() was called: outside of work its weights may be parts."""
    return hasattr(module, _METHOD)


def while_gathered(module: nn.Module, work: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """work(*inputs), which reads the module's weights; they are whole meanwhile, and again in its backward pass.

    Args:
        inputs: what gradients flow back to has to be among them.
    """
    run: Callable[..., Tensor] | None = getattr(module, _METHOD, None)
    return work(*inputs) if run is None else run(work, *inputs)
