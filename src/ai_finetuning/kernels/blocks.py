"""A transformer block's parts with hand-written gradients, for activations in bf16 or fp32 on a CPU.

Products are torch's (oneDNN, MKL) or OpenBLAS's (products.py), everything between them is kernels/cpu.cpp. For the backward pass they save only
what is expensive to recompute. Tensors are [tokens, features]; lengths alone separate the documents of a packed row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import native
from .autograd import Function
from .inputs import Source
from .products import products_of


class Made(Function):
    """What a source of inputs.py makes of its tensors, by itself."""

    @staticmethod
    def forward(ctx: Any, source: Source, *origin: Any) -> Tensor:
        y, kept = source.make(*origin)
        ctx.source = source
        ctx.save_for_backward(*origin, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        origin, kept = ctx.saved_tensors[: ctx.source.takes], ctx.saved_tensors[ctx.source.takes :]
        gradients, _ = ctx.source.back(dy.contiguous(), kept, ctx.needs_input_grad[1:], False, *origin)
        return None, *gradients


@dataclass(frozen=True)
class LoRA:
    """A group's adapters: scale of each; p of the dropout on their common input."""

    scales: tuple[float, ...]
    dropout: float = 0.0


def _seed() -> int:
    """From torch's generator, so that a restored random state gives the same choices."""
    return int(torch.randint(0, 2**62, ()).item())


class Linears(Function):
    """Linear layers of one input: y_i = x W_i^T + b_i + scale_i (drop(x) A_i^T) B_i^T, and `residual` added to the only
    y.

    One product with all A, one with all dA; the gradient of x is summed inside the products. Weights that need no
    gradient get none, an input that needs none neither.

    `source`, of inputs.py, says what x is made of. Inputs after the first five: what it takes, n weights, n biases (None
    allowed), and with lora n pairs A [r, in], B [out, r]. `cast` gives weights in the type of x; where that is bf16,
    weights in fp32 are master weights, and it keeps their copies. Its `products`, where it has them, say which library
    multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any, source: Source, residual: Tensor | None, lora: LoRA | None, count: int, cast: Any, *tensors: Any
    ) -> tuple[Tensor, ...]:
        origin, weights = tensors[: source.takes], tensors[source.takes :]
        plain, biases, pairs = weights[:count], weights[count : 2 * count], weights[2 * count :]
        x, kept = source.make(*origin)
        compute = [cast(weight) for weight in plain]
        products, outputs, hidden = products_of(cast), [], None
        for weight, bias in zip(compute, biases, strict=True):
            out = products.sum(residual, x, weight.t()) if residual is not None else products.mm(x, weight.t())
            outputs.append(out if bias is None else out.add_(bias))
        ctx.seed = 0
        if lora is not None:
            ctx.seed = _seed() if lora.dropout else 0
            dropped = native.dropout(x, ctx.seed, lora.dropout) if lora.dropout else x
            down = torch.cat([a.to(x.dtype) for a in pairs[0::2]])
            hidden = products.mm(dropped, down.t())
            start = 0
            for out, b, scale in zip(outputs, pairs[1::2], lora.scales, strict=True):
                part = hidden[:, start : start + b.shape[1]]
                products.add(out, part, b.to(x.dtype).t(), scale)
                start += b.shape[1]
        ctx.save_for_backward(*origin, *plain, *pairs, hidden, *kept)
        ctx.source, ctx.lora, ctx.count, ctx.cast = source, lora, count, cast
        ctx.biased = [bias is not None for bias in biases]
        ctx.with_residual = residual is not None
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        source, lora, count, products = ctx.source, ctx.lora, ctx.count, products_of(ctx.cast)
        taken, saved = source.takes, ctx.saved_tensors
        pairs_end = taken + count * (3 if lora is not None else 1)
        origin, plain, pairs = saved[:taken], saved[taken : taken + count], saved[taken + count : pairs_end]
        hidden, *kept = saved[pairs_end:]
        dys = [gradient.contiguous() for gradient in gradients]
        needed, need = ctx.needs_input_grad[5 : 5 + taken], ctx.needs_input_grad[5 + taken :]
        dx: Tensor | None = None
        if any(needed):
            dx = products.mm(dys[0], ctx.cast(plain[0]))
            for dy, weight in zip(dys[1:], plain[1:], strict=True):
                products.add(dx, dy, ctx.cast(weight))
        dhidden, dups = (None, []) if lora is None else _through_adapters(ctx, dys, hidden, pairs, dx)
        wanted, dorigin = lora is not None or any(need[:count]), (None,) * taken
        x: Any = None
        if dx is not None:
            dorigin, x = source.back(dx, kept, needed, wanted, *origin)
        elif wanted:
            x, _ = source.make(*origin)
        dws = [
            products.mm(dy.t(), x).to(weight.dtype) if expected else None
            for dy, weight, expected in zip(dys, plain, need[:count], strict=True)
        ]
        dbs = [
            dy.sum(0, dtype=torch.float32) if biased and expected else None
            for dy, biased, expected in zip(dys, ctx.biased, need[count : 2 * count], strict=True)
        ]
        dpairs: list[Tensor] = []
        if dhidden is not None:
            dropped = native.dropout(x, ctx.seed, lora.dropout) if lora.dropout else x
            ddown = products.mm(dhidden.t(), dropped).to(pairs[0].dtype)
            ddowns = torch.split(ddown, [up.shape[1] for up in pairs[1::2]])
            dpairs = [gradient for pair in zip(ddowns, dups, strict=True) for gradient in pair]
        residual = gradients[0] if ctx.with_residual else None
        return None, residual, None, None, None, *dorigin, *dws, *dbs, *dpairs


def _through_adapters(
    ctx: Any, dys: Sequence[Tensor], hidden: Tensor, pairs: Sequence[Tensor], dx: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """(gradient of the product with all A, gradients of all B in their dtype); adds the adapters' share to dx."""
    lora, products = ctx.lora, products_of(ctx.cast)
    dhidden, start, dups = torch.empty_like(hidden), 0, []
    for dy, b, scale in zip(dys, pairs[1::2], lora.scales, strict=True):
        part = slice(start, start + b.shape[1])
        dhidden[:, part] = products.mm(dy, b.to(hidden.dtype) * scale)
        dups.append(products.mm(dy.t(), hidden[:, part]).to(b.dtype).mul_(scale))
        start = part.stop
    if dx is not None:
        down = torch.cat([a.to(hidden.dtype) for a in pairs[0::2]])
        if lora.dropout:
            native.add_dropped(dx, products.mm(dhidden, down), ctx.seed, lora.dropout)
        else:
            products.add(dx, dhidden, down)
    return dhidden, dups
