"""Attention of the fused blocks with each head of keys of each document in one thread (kernels/cpu.cpp), where products are
computed in pieces (products.py).

blocks.py's Attention calls torch for every document, block and head group, and torch makes code for every shape that it meets
for the first time: with documents of all lengths, in every step. Here a document has the padding that gives similar ones the
same shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import native
from .attention import Length, total_of
from .autograd import Function
from .blocks import QUERY_BLOCK, AttentionShape, keeps_probabilities
from .products import rounded


def serves(lengths: tuple[Length, ...], shape: AttentionShape) -> bool:
    """Whether documents without forks and scores without a cap are asked for, in numbers that keep all threads busy."""
    whole = all(isinstance(length, int) for length in lengths)
    return whole and not shape.cap and len(lengths) * shape.kv_heads >= 2 * torch.get_num_threads()


class AttentionInPieces(Function):
    """What blocks.py's Attention computes, of the same arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cos: Tensor,
        sin: Tensor,
        lengths: tuple[int, ...],
        shape: AttentionShape,
    ) -> Tensor:
        documents, padded, kept = _documents(lengths, shape)
        used = total_of(lengths)
        out = _zero_behind(q.shape, used, q.dtype)
        qh = q.new_empty(shape.heads * padded * shape.head_dim)
        kh, vh = (q.new_empty(shape.kv_heads * padded * shape.head_dim) for _ in range(2))
        probabilities = q.new_empty(kept if keeps_probabilities(q.dtype) else 0)
        plan = _plan(shape, cos.shape[1])
        inputs = [part.contiguous() for part in (q, k, v)]
        native.attention_forward(inputs, out, (qh, kh, vh, probabilities), (cos, sin), documents, plan)
        ctx.save_for_backward(cos, sin, qh, kh, vh, probabilities)
        ctx.documents, ctx.plan, ctx.used = documents, plan, used
        ctx.shapes = q.shape, k.shape, v.shape
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        cos, sin, *kept = ctx.saved_tensors
        gradients = [_zero_behind(shape, ctx.used, gradient.dtype) for shape in ctx.shapes]
        native.attention_backward(gradient.contiguous(), gradients, kept, (cos, sin), ctx.documents, ctx.plan)
        return *gradients, None, None, None, None


def _zero_behind(shape: torch.Size, used: int, dtype: torch.dtype) -> Tensor:
    """To be written, but for the padding behind the documents."""
    out = torch.empty(shape, dtype=dtype)
    out[used:] = 0
    return out


def _plan(shape: AttentionShape, half: int) -> native.AttentionPlan:
    return native.AttentionPlan(
        shape.heads, shape.kv_heads, shape.head_dim, half, QUERY_BLOCK, shape.window, shape.scale
    )


def _documents(lengths: tuple[int, ...], shape: AttentionShape) -> tuple[Tensor, int, int]:
    """(cpu.cpp's documents [count, 5] int64, longest first; their tokens with padding; numbers of all probabilities)."""
    rows, first, padded, kept = [], 0, 0, 0
    for length in lengths:
        size = rounded(length)
        rows.append((first, length, size, padded, kept))
        first, padded = first + length, padded + size
        for start in range(0, size, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, size)
            keys = stop - (max(0, start - shape.window + 1) if shape.window else 0)
            kept += shape.heads * (stop - start) * keys
    rows.sort(key=lambda row: -row[1])
    return torch.tensor(rows, dtype=torch.int64), padded, kept
