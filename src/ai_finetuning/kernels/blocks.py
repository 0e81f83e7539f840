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
from .inputs import COUNTS, Input, Normed
from .products import products_of

# Queries of one product: a block sees only the keys before its end, which saves up to half of the work of long
# documents.
QUERY_BLOCK = 256


class Norm(Function):
    """inputs.py's Normed of x, weight and bias (None allowed)."""

    @staticmethod
    def forward(ctx: Any, norm: Normed, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y, kept = norm.make(x, weight, bias)
        ctx.norm = norm
        ctx.save_for_backward(x, weight, bias, *kept)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        *origin, stats = ctx.saved_tensors
        gradients, _ = ctx.norm.back(dy.contiguous(), (stats,), ctx.needs_input_grad[1:], False, *origin)
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
        ctx: Any, source: Input, residual: Tensor | None, lora: LoRA | None, count: int, cast: Any, *tensors: Any
    ) -> tuple[Tensor, ...]:
        origin, weights = tensors[: COUNTS[type(source)]], tensors[COUNTS[type(source)] :]
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
        taken, saved = COUNTS[type(source)], ctx.saved_tensors
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


def keeps_probabilities(dtype: torch.dtype) -> bool:
    """Whether attention keeps them for its backward pass: in bf16, whose products are so fast that making them again is seen
    (docs/decisions/0191); in fp32 they are twice as large, and it is not.
    """
    return dtype is not torch.float32


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
        saved: list[Any] = []
        prefix: list[Tensor] = []
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
                made = _attend(qh, kh, vh, result, block, shape)
                saved += made if keeps_probabilities(q.dtype) else (None, None)
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
        still = cos[:, :0].contiguous()
        later: list[Tensor] = []  # gradients of a prefix's keys and values from the branches behind the first
        place = len(saved)
        for rows, first in reversed(_runs(ctx.lengths)):
            blocks = _blocks(rows.stop - rows.start, first or 0)
            place -= 3 + 2 * len(blocks)
            qh, kh, vh, *kept = saved[place : place + 3 + 2 * len(blocks)]
            gh = _heads(gradient[rows], (still[rows], still[rows]), shape.heads, shape.head_dim)
            dqh, dkh, dvh = torch.empty_like(qh), torch.zeros_like(kh), torch.zeros_like(vh)
            for block, made in zip(blocks, zip(kept[::2], kept[1::2], strict=True), strict=True):
                _attend_backward((qh, kh, vh), gh, (dqh, dkh, dvh), made, block, shape)
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


def _probabilities(q: Tensor, k: Tensor, block: slice, shape: AttentionShape) -> tuple[Tensor, Tensor | None]:
    """Of a block [kv_heads, group * queries, keys], and the capped scores where there is a cap."""
    keys, rows = _keys(block, shape), _own(q, k, block)
    scores = torch.bmm(_grouped(q, rows, shape.kv_heads), k[:, keys].transpose(1, 2))
    capped = torch.empty_like(scores) if shape.cap else None
    queries, first = block.stop - block.start, block.start - keys.start
    native.softmax_forward(scores, capped, queries, first=first, window=shape.window, scale=shape.scale, cap=shape.cap)
    return scores, capped


def _attend(q: Tensor, k: Tensor, v: Tensor, out: Tensor, block: slice, shape: AttentionShape) -> tuple[Any, Any]:
    """Writes a block of the output; returns its _probabilities()."""
    probabilities, capped = _probabilities(q, k, block, shape)
    result = torch.bmm(probabilities, v[:, _keys(block, shape)])
    out[:, _own(q, k, block)] = result.view(shape.heads, block.stop - block.start, shape.head_dim)
    return probabilities, capped


def _attend_backward(
    inputs: tuple[Tensor, Tensor, Tensor],
    gradient: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    kept: tuple[Tensor | None, Tensor | None],
    block: slice,
    shape: AttentionShape,
) -> None:
    """Adds a block's gradients to outputs = (dq, dk, dv); probabilities that were not kept are computed again."""
    (q, k, v), (dq, dk, dv) = inputs, outputs
    probabilities, capped = kept
    if probabilities is None:
        probabilities, capped = _probabilities(q, k, block, shape)
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
