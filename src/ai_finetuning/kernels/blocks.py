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
from .attention import Length, total_of
from .autograd import Function
from .products import products_of

# Queries of one product: a block sees only the keys before its end, which saves up to half of the work of long
# documents.
QUERY_BLOCK = 256


class Norm(Function):
    """RMSNorm (arXiv:1910.07467), or LayerNorm where a bias is given: y = norm(x) * (offset + weight) + bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, offset: float, centered: bool
    ) -> Tensor:
        scale = weight.float()
        y, stats = native.norm_forward(
            x, scale, None if bias is None else bias.float(), eps=eps, offset=offset, centered=centered
        )
        ctx.save_for_backward(x, weight, stats)
        ctx.offset, ctx.centered, ctx.with_bias = offset, centered, bias is not None
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, weight, stats = ctx.saved_tensors
        dx, dw, db = native.norm_backward(
            dy.contiguous(),
            x,
            weight.float(),
            stats,
            offset=ctx.offset,
            centered=ctx.centered,
            dx=ctx.needs_input_grad[0],
            dw=ctx.needs_input_grad[1] or ctx.needs_input_grad[2],
        )
        dw = None if dw is None else dw.to(weight.dtype)
        return dx, dw, db.to(weight.dtype) if db is not None and ctx.with_bias else None, None, None, None


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

    Inputs after the first four: n weights, n biases (None allowed), and with lora n pairs A [r, in], B [out, r].
    `cast` gives weights in the type of x; where that is bf16, weights in fp32 are master weights, and it keeps their copies.
    Its `products`, where it has them, say which library multiplies.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, lora: LoRA | None, count: int, cast: Any, *weights: Any
    ) -> tuple[Tensor, ...]:
        plain, biases, pairs = weights[:count], weights[count : 2 * count], weights[2 * count :]
        compute = [cast(weight) for weight in plain]
        products, outputs = products_of(cast), []
        for weight, bias in zip(compute, biases, strict=True):
            out = products.sum(residual, x, weight.t()) if residual is not None else products.mm(x, weight.t())
            outputs.append(out if bias is None else out.add_(bias))
        ctx.seed, saved = 0, [x]
        if lora is not None:
            ctx.seed = _seed() if lora.dropout else 0
            source = native.dropout(x, ctx.seed, lora.dropout) if lora.dropout else x
            down = torch.cat([a.to(x.dtype) for a in pairs[0::2]])
            hidden = products.mm(source, down.t())
            start = 0
            for out, b, scale in zip(outputs, pairs[1::2], lora.scales, strict=True):
                part = hidden[:, start : start + b.shape[1]]
                products.add(out, part, b.to(x.dtype).t(), scale)
                start += b.shape[1]
            saved.append(hidden)
        ctx.save_for_backward(*saved, *plain, *pairs)
        ctx.lora, ctx.count, ctx.cast, ctx.biased = lora, count, cast, [bias is not None for bias in biases]
        ctx.with_residual = residual is not None
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        lora, count, products = ctx.lora, ctx.count, products_of(ctx.cast)
        x, *rest = ctx.saved_tensors
        hidden = rest.pop(0) if lora is not None else None
        plain, pairs = rest[:count], rest[count:]
        dys = [gradient.contiguous() for gradient in gradients]
        need = ctx.needs_input_grad[5:]
        dx: Tensor | None = None
        if ctx.needs_input_grad[0]:
            dx = products.mm(dys[0], ctx.cast(plain[0]))
            for dy, weight in zip(dys[1:], plain[1:], strict=True):
                products.add(dx, dy, ctx.cast(weight))
        dws = [
            products.mm(dy.t(), x).to(weight.dtype) if expected else None
            for dy, weight, expected in zip(dys, plain, need[:count], strict=True)
        ]
        dbs = [
            dy.sum(0, dtype=torch.float32) if biased and expected else None
            for dy, biased, expected in zip(dys, ctx.biased, need[count : 2 * count], strict=True)
        ]
        dpairs: list[Tensor | None] = []
        if lora is not None:
            assert hidden is not None
            dpairs = _lora_backward(ctx, dys, x, hidden, pairs, dx)
        residual = gradients[0] if ctx.with_residual else None
        return dx, residual, None, None, None, *dws, *dbs, *dpairs


def _lora_backward(
    ctx: Any, dys: Sequence[Tensor], x: Tensor, hidden: Tensor, pairs: Sequence[Tensor], dx: Tensor | None
) -> list[Tensor | None]:
    """Gradients of A and B in their dtype; adds the adapters' share to dx."""
    lora, products = ctx.lora, products_of(ctx.cast)
    dhidden, start, dbs = torch.empty_like(hidden), 0, []
    for dy, b, scale in zip(dys, pairs[1::2], lora.scales, strict=True):
        part = slice(start, start + b.shape[1])
        scaled = b.to(x.dtype) * scale
        dhidden[:, part] = products.mm(dy, scaled)
        dbs.append(products.mm(dy.t(), hidden[:, part]).to(b.dtype).mul_(scale))
        start = part.stop
    source = native.dropout(x, ctx.seed, lora.dropout) if lora.dropout else x
    das = torch.split(products.mm(dhidden.t(), source).to(pairs[0].dtype), [b.shape[1] for b in pairs[1::2]])
    if dx is not None:
        down = torch.cat([a.to(x.dtype) for a in pairs[0::2]])
        if lora.dropout:
            native.add_dropped(dx, products.mm(dhidden, down), ctx.seed, lora.dropout)
        else:
            products.add(dx, dhidden, down)
    return [gradient for pair in zip(das, dbs, strict=True) for gradient in pair]


@dataclass(frozen=True)
class AttentionShape:
    """What a layer's attention computes.

    Attributes:
        heads, kv_heads, head_dim: sizes.
        scale: factor of the scores.
        window: keys that a query sees, itself included; 0 for all before it.
        cap: scores become cap * tanh(score / cap); 0 for none.
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    window: int = 0
    cap: float = 0.0


class Attention(Function):
    """Causal attention inside each document, rotary positions included. A document with a fork is its prefix with the first
    branch, and each later branch behind the same prefix.

    q [tokens, heads * d], k and v [tokens, kv_heads * d] before rotation; cos, sin [tokens, rotated / 2] fp32; lengths
    of the documents in order (tokens after the last one, padding, give zeros). Short products per document and block of
    queries: on CPUs several times faster than scaled_dot_product_attention in the backward pass
    (docs/design/training-step.md).
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: tuple[Length, ...],
        shape: AttentionShape,
    ) -> Tensor:
        out = torch.zeros_like(q) if total_of(lengths) < q.shape[0] else torch.empty_like(q)
        still = cos[:, :0].contiguous()
        saved, prefix = [], []
        for rows, first in _runs(lengths):
            turned = (cos[rows], sin[rows])
            qh = _heads(q[rows], turned, shape.heads, shape.head_dim)
            kh = _heads(k[rows], turned, shape.kv_heads, shape.head_dim)
            vh = _heads(v[rows], (still[rows], still[rows]), shape.kv_heads, shape.head_dim)
            result = torch.empty_like(qh)
            if first is None:
                prefix = [kh, vh]
            else:
                kh, vh = (
                    torch.cat([whole[:, :first], own], dim=1) for whole, own in zip(prefix, (kh, vh), strict=True)
                )
            saved += [qh, kh, vh]
            for block in _blocks(qh.shape[1], first or 0):
                saved += _attend(qh, kh, vh, result, block, shape)
            native.from_heads(result, out[rows], still[rows], still[rows], shape.head_dim)
        ctx.save_for_backward(cos, sin, *saved)
        ctx.lengths, ctx.shape, ctx.tokens = lengths, shape, q.shape[0]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        shape: AttentionShape = ctx.shape
        cos, sin, *saved = ctx.saved_tensors
        gradient = gradient.contiguous()
        make = torch.zeros if total_of(ctx.lengths) < ctx.tokens else torch.empty
        dq, dk, dv = (
            make(ctx.tokens, heads * shape.head_dim, dtype=gradient.dtype)
            for heads in (shape.heads, shape.kv_heads, shape.kv_heads)
        )
        still, place = cos[:, :0].contiguous(), len(saved)
        later: list[Tensor] = []  # gradients of a prefix's keys and values from the branches behind the first
        for rows, first in reversed(_runs(ctx.lengths)):
            blocks = _blocks(rows.stop - rows.start, first or 0)
            place -= 3 + len(blocks) * (2 if shape.cap else 1)
            qh, kh, vh, *kept = saved[place : place + 3 + len(blocks) * (2 if shape.cap else 1)]
            gh = _heads(gradient[rows], (still[rows], still[rows]), shape.heads, shape.head_dim)
            dqh, dkh, dvh = torch.empty_like(qh), torch.zeros_like(kh), torch.zeros_like(vh)
            for number, block in enumerate(blocks):
                probabilities, capped = (kept[2 * number], kept[2 * number + 1]) if shape.cap else (kept[number], None)
                _attend_backward((qh, kh, vh), gh, (dqh, dkh, dvh), (probabilities, capped), block, shape)
            if first is not None:
                mine = [part[:, :first] for part in (dkh, dvh)]
                later = [had + part for had, part in zip(later, mine, strict=True)] if later else mine
                dkh, dvh = (part[:, first:].contiguous() for part in (dkh, dvh))
            elif later:
                for whole, part in zip((dkh, dvh), later, strict=True):
                    whole[:, : part.shape[1]] += part
                later = []
            native.from_heads(dqh, dq[rows], cos[rows], sin[rows], shape.head_dim)
            native.from_heads(dkh, dk[rows], cos[rows], sin[rows], shape.head_dim)
            native.from_heads(dvh, dv[rows], still[rows], still[rows], shape.head_dim)
        return dq, dk, dv, None, None, None, None


def _heads(x: Tensor, turned: tuple[Tensor, Tensor], heads: int, head_dim: int) -> Tensor:
    """x [tokens, heads * d] as [heads, tokens, d], rotated."""
    out = x.new_empty(heads, x.shape[0], head_dim)
    native.to_heads(x, out, *turned, head_dim)
    return out


def _runs(lengths: tuple[Length, ...]) -> list[tuple[slice, int | None]]:
    """(rows, tokens of the prefix in front of them that lies elsewhere) of documents: a prefix with its first branch has none
    (None), as an ordinary document.
    """
    runs: list[tuple[slice, int | None]] = []
    start = 0
    for length in lengths:
        prefix, first, *others = (0, length) if isinstance(length, int) else length
        for size, behind in ((prefix + first, None), *((other, prefix) for other in others)):
            runs.append((slice(start, start + size), behind))
            start += size
    return runs


def _blocks(queries: int, first: int) -> list[slice]:
    """Blocks of the queries by their places among the keys, of which there are `first` before the first query."""
    ends = range(first, first + queries, QUERY_BLOCK)
    return [slice(start, min(start + QUERY_BLOCK, first + queries)) for start in ends]


def _keys(block: slice, shape: AttentionShape) -> slice:
    """Keys that some query of the block sees."""
    return slice(max(0, block.start - shape.window + 1) if shape.window else 0, block.stop)


def _own(q: Tensor, k: Tensor, block: slice) -> slice:
    """The rows of q that a block is: the queries are the last of the keys' tokens."""
    first = k.shape[1] - q.shape[1]
    return slice(block.start - first, block.stop - first)


def _grouped(x: Tensor, block: slice, kv_heads: int) -> Tensor:
    """Rows of a block of x [heads, tokens, d] as [kv_heads, group * queries, d]; a copy only where the block is not
    all.
    """
    heads, tokens, width = x.shape
    part = x if block.stop - block.start == tokens else x[:, block].contiguous()
    return part.view(kv_heads, heads // kv_heads * (block.stop - block.start), width)


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, block: slice, shape: AttentionShape) -> list[Tensor]:
    """Writes a block of the output; returns probabilities, and the capped scores where there is a cap."""
    keys, queries, rows = _keys(block, shape), block.stop - block.start, _own(q, k, block)
    scores = torch.bmm(_grouped(q, rows, shape.kv_heads), k[:, keys].transpose(1, 2))
    capped = torch.empty_like(scores) if shape.cap else None
    native.softmax_forward(
        scores, capped, queries, first=block.start - keys.start, window=shape.window, scale=shape.scale, cap=shape.cap
    )
    result = torch.bmm(scores, v[:, keys])
    out[:, rows] = result.view(shape.heads, queries, shape.head_dim)
    return [scores] if capped is None else [scores, capped]


def _attend_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    kept: tuple[Tensor, Tensor | None],
    block: slice,
    shape: AttentionShape,
) -> None:
    """Adds a block's gradients to outputs = (dq, dk, dv)."""
    (q, k, v), (dq, dk, dv), (probabilities, capped) = inputs, outputs, kept
    keys, queries, rows = _keys(block, shape), block.stop - block.start, _own(q, k, block)
    g = _grouped(gradient, rows, shape.kv_heads)
    dv[:, keys] += torch.bmm(probabilities.transpose(1, 2), g)
    scores = torch.bmm(g, v[:, keys].transpose(1, 2))
    native.softmax_backward(
        scores,
        probabilities,
        capped,
        queries,
        first=block.start - keys.start,
        window=shape.window,
        scale=shape.scale,
        cap=shape.cap,
    )
    dq[:, rows] = torch.bmm(scores, k[:, keys]).view(shape.heads, queries, shape.head_dim)
    dk[:, keys] += torch.bmm(scores.transpose(1, 2), _grouped(q, rows, shape.kv_heads))


class Gated(Function):
    """act(gate) * up (arXiv:2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return native.gated_forward(gate, up, activation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gate, up = ctx.saved_tensors
        return *native.gated_backward(gradient.contiguous(), gate, up, ctx.activation), None
