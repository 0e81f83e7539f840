"""A linear layer with a LoRA adapter (arXiv:2106.09685) as one operation, in 16 bit, with its own backward pass.

Autograd over single operations casts the adapter's fp32 weights and their gradients one by one, scales by a kernel of its
own, and adds the adapter's share of the input's gradient to the base's afterwards. Here products do all of that. Plain
torch, so it runs wherever torch does; GPUs gain from it (docs/decisions/0129).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Reason
from .autograd import Function
from .checked import Pairs, why_not_taken
from .stand_in import kernels_of


def adapted_linear(
    x: Tensor,
    base: Callable[[Tensor], Tensor],
    weight: Tensor,
    adapter: Adapter,
    *,
    whole: Callable[[Tensor, torch.dtype], Tensor] = lambda weight, dtype: weight.to(dtype),
) -> Tensor:
    """base(x) + scale * dropout(x) A^T B^T: [rows, out].

    Sums are rounded once where single operations round three times; the gradients of A and B are not rounded to 16 bit.

    Args:
        x: [rows, in].
        base: x -> [rows, out], a new tensor; it does not train.
        weight: of the base, [out, in], or what holds it where it is quantized.
        whole: makes the matrix of it, in a dtype.
    """
    token, inner = _Adapter.apply(x, adapter.down, adapter.up, weight, adapter, whole)
    summed: Tensor = _Sum.apply(token, x, inner, base, adapter.narrow[1])
    return summed


@dataclass(frozen=True)
class Adapter:
    """The adapter of a layer.

    Attributes:
        down, up: A [r, in] and B [out, r], which train.
        narrow: both in the dtype of the layer's input.
        scale: of its product.
        dropout: of its input, from 0 to below 1.
    """

    down: Tensor
    up: Tensor
    narrow: tuple[Tensor, Tensor]
    scale: float
    dropout: float


class _Adapter(Function):
    """The product with A, which the layer's whole backward pass hangs on; it gives a stand-in for the layer's output, whose
    gradient that pass takes, and scale * dropout(x) A^T.

    Two operations, because a checkpoint that is computed again ends with the last tensor that is saved: the base's product
    of a block's last layer, a quarter of a Llama block's, comes after that and is left out.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, down: Tensor, up: Tensor, weight: Tensor, adapter: Adapter, whole: Any
    ) -> tuple[Tensor, Tensor]:
        first, second = adapter.narrow
        p = adapter.dropout
        dropped, kept = torch.native_dropout(x, p, True) if p else (x, None)
        inner = _scaled(dropped, first.t(), adapter.scale)
        ctx.save_for_backward(dropped, kept, inner, weight, first, second)
        ctx.whole, ctx.scale, ctx.dropout, ctx.dtypes = whole, adapter.scale, p, (down.dtype, up.dtype)
        ctx.mark_non_differentiable(inner)
        ctx.set_materialize_grads(False)  # zeros for the gradient of what has none
        return x.new_empty(()).expand(x.shape[0], second.shape[0]), inner

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        dropped, kept, inner, weight, first, second = ctx.saved_tensors
        wants_x, wants_down, wants_up = ctx.needs_input_grad[:3]
        dinner = _scaled(gradient, second, ctx.scale)
        ddown = _wide(dinner.t(), dropped, ctx.dtypes[0]) if wants_down else None
        dup = _wide(gradient.t(), inner, ctx.dtypes[1]) if wants_up else None
        dx = None
        if wants_x:
            dx = gradient @ ctx.whole(weight, gradient.dtype)
            if kept is None:
                dx.addmm_(dinner, first)
            else:
                dx.addcmul_(dinner @ first, kept, value=1 / (1 - ctx.dropout))
        return dx, ddown, dup, None, None, None


class _Sum(Function):
    """The layer's output; its gradient is that of the stand-in."""

    @staticmethod
    def forward(ctx: Any, token: Tensor, x: Tensor, inner: Tensor, base: Any, second: Tensor) -> Tensor:
        result: Tensor = base(x).to(x.dtype)
        return result.addmm_(inner, second.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None, None, None, None


def _scaled(one: Tensor, other: Tensor, factor: float) -> Tensor:
    """factor * one @ other, by the product itself."""
    return torch.addmm(one.new_empty(()), one, other, beta=0, alpha=factor)


def _wide(one: Tensor, other: Tensor, dtype: torch.dtype) -> Tensor:
    """one @ other in a wider dtype than theirs."""
    if one.dtype is not dtype and kernels_of(one.device) == "cuda":  # no other device's products do that
        return torch.mm(one, other, out_dtype=dtype)
    return torch.mm(one, other).to(dtype)


# Largest relative difference to fp32, gradients included.
_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 4e-2}


def why_not_one_operation(dtype: torch.dtype, device: torch.device) -> Reason | None:
    """None where adapted_linear() computes on a device what fp32 does, gradients included; else the reason."""
    return why_not_taken(lambda: beside_plain(dtype, device), _TOLERANCE[dtype])


@torch.enable_grad()
def beside_plain(dtype: torch.dtype, device: torch.device) -> Pairs:
    """Output and three gradients of adapted_linear() in a dtype, each with that of plain torch in fp32; with dropout, whose
    numbers are the same for both.
    """
    generator, rows, width, height, rank, scale, dropout = torch.Generator().manual_seed(0), 48, 64, 96, 8, 2.0, 0.25

    def leaf(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype).to(kind).requires_grad_()

    x, weight = leaf(rows, width, kind=dtype), leaf(height, width, kind=dtype).detach() * width**-0.5
    down, up = leaf(rank, width), leaf(height, rank)
    narrow = (down.detach().to(dtype), up.detach().to(dtype))
    seed = torch.randn(rows, height, generator=generator).to(device, dtype)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        out = adapted_linear(x, lambda rows: F.linear(rows, weight), weight, Adapter(down, up, narrow, scale, dropout))
        torch.manual_seed(0)
        _, kept = torch.native_dropout(x.detach(), dropout, True)
    mine = [out.detach(), *torch.autograd.grad(out, (x, down, up), seed)]
    wide = x.detach().float().requires_grad_()
    plain = wide @ weight.float().t() + scale * ((wide * kept / (1 - dropout)) @ down.t() @ up.t())
    theirs = [plain.detach(), *torch.autograd.grad(plain, (wide, down, up), seed.float())]
    return list(zip(mine, theirs, strict=True))
