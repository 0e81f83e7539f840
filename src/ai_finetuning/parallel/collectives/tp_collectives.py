"""What ranks that share a layer send each other, forward and backward (Shoeybi et al. 2019, arXiv:1909.08053).

Values are replicated (every rank has the same) or cut along the last dimension as torch.chunk cuts. The gradient of a
replicated value is replicated too, unless the ranks only hold their own share of it; `copy_to` is where such
shares are added.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.autograd import Function
from ..weights.layout import chunk

Group = dist.ProcessGroup


class _SharedInput(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient, group=ctx.group)
        return gradient, None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, group: Group) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


class _Joined(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, width: int, group: Group) -> Tensor:
        ctx.width, ctx.group = width, group
        return _join(value, width, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _own(gradient, ctx.width, ctx.group), None, None


class _OwnPart(Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, width: int, group: Group) -> Tensor:
        ctx.width, ctx.group = width, group
        return _own(value, width, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return _join(gradient, ctx.width, ctx.group), None, None


def _own(value: Tensor, width: int, group: Group) -> Tensor:
    start, stop = chunk(width, dist.get_world_size(group), dist.get_rank(group))
    return value[..., start:stop].contiguous()


def _join(value: Tensor, width: int, group: Group) -> Tensor:
    """All ranks' parts; collectives want equal sizes, so the last parts are filled up and the filling is cut off."""
    size = dist.get_world_size(group)
    each = chunk(width, size, 0)[1]
    padded = torch.nn.functional.pad(value, (0, each - value.shape[-1])).contiguous()
    parts = [torch.empty_like(padded) for _ in range(size)]
    dist.all_gather(parts, padded, group=group)
    return torch.cat(parts, dim=-1)[..., :width]


def copy_to(value: Tensor, group: Group) -> Tensor:
    """The replicated value itself; its gradient is the sum of what the ranks' own computations give."""
    copied: Tensor = _SharedInput.apply(value, group)
    return copied


def reduce_from(value: Tensor, group: Group) -> Tensor:
    """The sum of all ranks' values, replicated."""
    added: Tensor = _Total.apply(value, group)
    return added


def gather_from(value: Tensor, width: int, group: Group) -> Tensor:
    """[..., width] replicated, from every rank's part [..., part of width]."""
    whole: Tensor = _Joined.apply(value, width, group)
    return whole


def scatter_to(value: Tensor, width: int, group: Group) -> Tensor:
    """This rank's part of a replicated [..., width]."""
    part: Tensor = _OwnPart.apply(value, width, group)
    return part
