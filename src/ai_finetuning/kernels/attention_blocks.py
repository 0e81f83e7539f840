"""Causal attention of the fused blocks by torch's products, for each document and block of queries: an input of linear layers
that is made again in the backward pass (inputs.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import native
from .attention import Length, total_of
from .inputs import Gradients

# Queries of one product: a block sees only the keys before its end, which saves up to half of the work of long
# documents.
QUERY_BLOCK = 256
# Queries, keys and values, or their gradients.
_Three = tuple[Tensor, Tensor, Tensor]
# cos and sin [tokens, rotated / 2].
_Angles = tuple[Tensor, Tensor]


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


def keeps_attention(dtype: torch.dtype) -> bool:
    """Whether probabilities and what is mixed by them are kept for the backward pass: in bf16, whose products are so fast that
    making them again is seen (docs/decisions/0191, 0192); in fp32 they are twice as large, and it is not.
    """
    return dtype is not torch.float32


def zero_behind(like: Tensor, used: int) -> Tensor:
    """One of the same shape to be written, zero from row `used` on: in the padding behind the documents."""
    out = torch.empty_like(like)
    out[used:] = 0
    return out


@dataclass(frozen=True)
class Attended:
    """Causal attention inside each document, rotary positions included. A document with a fork is its prefix with the first
    branch, and each later branch behind the same prefix.

    Of q [tokens, heads * d], k and v [tokens, kv_heads * d] before rotation, cos and sin [tokens, rotated / 2] fp32; lengths
    of the documents in order (tokens after the last one, padding, give zeros). Short products per document and block of
    queries: on CPUs several times faster than scaled_dot_product_attention in the backward pass
    (docs/design/training-step.md).
    """

    lengths: tuple[Length, ...]
    shape: AttentionShape
    takes: ClassVar[int] = 5

    def make(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        out = zero_behind(q, total_of(self.lengths))
        kept: list[Tensor] = []
        for rows, prefix in _runs(self.lengths):
            heads = _heads((q, k, v), (cos, sin), rows, prefix, self.shape)
            result = torch.empty_like(heads[0])
            for block in _blocks(rows, prefix):
                made = _probabilities(heads, block, self.shape)
                _mix(made[0], heads, result, block, self.shape)
                kept += made if keeps_attention(q.dtype) else ()
            _from_heads(result, out, rows, _still(cos), self.shape)
        return out, tuple(kept)

    def back(
        self, dy: Tensor, kept: Sequence[Tensor], needed: Sequence[bool], again: bool, *origin: Tensor
    ) -> tuple[Gradients, Tensor | None]:
        q, k, v, cos, sin = origin
        shape, turned, still = self.shape, (cos, sin), _still(cos)
        dq, dk, dv = gradients = [zero_behind(part, total_of(self.lengths)) for part in (q, k, v)]
        out = zero_behind(q, total_of(self.lengths)) if again else None
        later: list[Tensor] = []  # gradients of a prefix's keys and values from the branches behind the first
        waiting = list(kept)
        for rows, prefix in reversed(_runs(self.lengths)):
            heads, first = _heads((q, k, v), turned, rows, prefix, shape), prefix.stop - prefix.start
            blocks, gh = _blocks(rows, prefix), _to_heads(dy, rows, still, shape)
            made = [waiting.pop() for _ in range(len(blocks) * (2 if shape.cap else 1))][::-1] if kept else []
            result = torch.empty_like(heads[0]) if again else None
            dqh, dkh, dvh = _document_back(heads, gh, result, blocks, made, shape)
            if first:
                own = [part[:, :first] for part in (dkh, dvh)]
                later = [had + part for had, part in zip(later, own, strict=True)] if later else own
                dkh, dvh = (part[:, first:].contiguous() for part in (dkh, dvh))
            elif later:
                for whole, part in zip((dkh, dvh), later, strict=True):
                    whole[:, : part.shape[1]] += part
                later = []
            _from_heads(dqh, dq, rows, turned, shape)
            _from_heads(dkh, dk, rows, turned, shape)
            _from_heads(dvh, dv, rows, still, shape)
            if out is not None and result is not None:
                _from_heads(result, out, rows, still, shape)
        return (*gradients, None, None), out


def _runs(lengths: tuple[Length, ...]) -> list[tuple[slice, slice]]:
    """(rows, rows of the prefix in front of them that lies elsewhere) of documents: a prefix with its first branch has none, as
    an ordinary document.
    """
    runs: list[tuple[slice, slice]] = []
    start = 0
    for length in lengths:
        prefix, first, *others = (0, length) if isinstance(length, int) else length
        before = slice(start, start + prefix)
        for size, behind in ((prefix + first, slice(0, 0)), *((other, before) for other in others)):
            runs.append((slice(start, start + size), behind))
            start += size
    return runs


def _blocks(rows: slice, prefix: slice) -> list[slice]:
    """Blocks of a run's queries by their places among the keys: those of the prefix come before the first query."""
    first = prefix.stop - prefix.start
    end = first + rows.stop - rows.start
    return [slice(start, min(start + QUERY_BLOCK, end)) for start in range(first, end, QUERY_BLOCK)]


def _still(cos: Tensor) -> _Angles:
    """Angles that rotate nothing."""
    none = cos[:, :0].contiguous()
    return none, none


def _to_heads(x: Tensor, rows: slice, angles: _Angles, shape: AttentionShape) -> Tensor:
    """Rows of x [tokens, heads * d] as [heads, rows, d], rotated."""
    part = x[rows]
    out = x.new_empty(x.shape[1] // shape.head_dim, part.shape[0], shape.head_dim)
    native.to_heads(part, out, angles[0][rows], angles[1][rows], shape.head_dim)
    return out


def _from_heads(x: Tensor, out: Tensor, rows: slice, angles: _Angles, shape: AttentionShape) -> None:
    """The way back, into rows of out."""
    native.from_heads(x, out[rows], angles[0][rows], angles[1][rows], shape.head_dim)


def _heads(given: _Three, turned: _Angles, rows: slice, prefix: slice, shape: AttentionShape) -> _Three:
    """q, k and v of a run as heads, rotated; keys and values with those of its prefix in front."""
    q, *seen = given
    parts = [rows] if prefix.stop == prefix.start else [prefix, rows]
    keys, values = (
        torch.cat([_to_heads(x, part, angles, shape) for part in parts], dim=1)
        if len(parts) > 1
        else _to_heads(x, rows, angles, shape)
        for x, angles in zip(seen, (turned, _still(turned[0])), strict=True)
    )
    return _to_heads(q, rows, turned, shape), keys, values


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


def _probabilities(heads: _Three, block: slice, shape: AttentionShape) -> tuple[Tensor, ...]:
    """Of a block [kv_heads, group * queries, keys]; where there is a cap, the capped scores as well."""
    q, k, _ = heads
    keys, rows = _keys(block, shape), _own(q, k, block)
    scores = torch.bmm(_grouped(q, rows, shape.kv_heads), k[:, keys].transpose(1, 2))
    capped = torch.empty_like(scores) if shape.cap else None
    queries, first = block.stop - block.start, block.start - keys.start
    native.softmax_forward(scores, capped, queries, first=first, window=shape.window, scale=shape.scale, cap=shape.cap)
    return (scores,) if capped is None else (scores, capped)


def _mix(probabilities: Tensor, heads: _Three, out: Tensor, block: slice, shape: AttentionShape) -> None:
    """Writes a block of the output [heads, tokens, d]."""
    q, k, v = heads
    result = torch.bmm(probabilities, v[:, _keys(block, shape)])
    out[:, _own(q, k, block)] = result.view(shape.heads, block.stop - block.start, shape.head_dim)


def _document_back(
    heads: _Three,
    gradient: Tensor,
    out: Tensor | None,
    blocks: Sequence[slice],
    kept: Sequence[Tensor],
    shape: AttentionShape,
) -> _Three:
    """Gradients of a run's heads; its output is written once more where it is not None.

    Args:
        kept: what _probabilities() made of all blocks, or nothing: then it makes them again.
    """
    q, k, v = heads
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    each = len(kept) // len(blocks)
    for number, block in enumerate(blocks):
        made = kept[number * each :][:each] if kept else _probabilities(heads, block, shape)
        if out is not None:
            _mix(made[0], heads, out, block, shape)
        keys, queries, rows = _keys(block, shape), block.stop - block.start, _own(q, k, block)
        g = _grouped(gradient, rows, shape.kv_heads)
        dv[:, keys] += torch.bmm(made[0].transpose(1, 2), g)
        scores = torch.bmm(g, v[:, keys].transpose(1, 2))
        native.softmax_backward(
            scores,
            made[0],
            made[1] if shape.cap else None,
            queries,
            first=block.start - keys.start,
            window=shape.window,
            scale=shape.scale,
            cap=shape.cap,
        )
        dq[:, rows] = torch.bmm(scores, k[:, keys]).view(shape.heads, queries, shape.head_dim)
        dk[:, keys] += torch.bmm(scores.transpose(1, 2), _grouped(q, rows, shape.kv_heads))
    return dq, dk, dv
