"""What a model is made of, whoever wrote it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn


def layer_list(model: nn.Module) -> nn.ModuleList | None:
    """The repeated blocks: the largest ModuleList."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda obtained: sum(p.numel() for p in obtained.parameters()), default=None)


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers."""
    yield from module.parameters()
    yield from module.buffers()
