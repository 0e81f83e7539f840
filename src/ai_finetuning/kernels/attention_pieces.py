"""Attention of the fused blocks by heads: each head of keys of each document in one thread (kernels/cpu.cpp), with torch's
products of that thread (products.py).

attention_blocks.py calls torch for every document, block and head group, and torch makes code for every shape that it meets
for the first time: with documents of all lengths, in every step. Here a document has the padding that gives similar ones the
same shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import native
from .attention import Length, total_of
from .attention_blocks import QUERY_BLOCK, Attended, AttentionShape, keeps_attention, zero_behind
from .inputs import Gradients
from .products import PIECES, Products, rounded

# Queries of one product in fp32: fewer keys behind the last query are computed for nothing, and small products are as fast there
# as large ones. In bf16 they are not (docs/decisions/0194).
_SMALL_BLOCK = 64


@dataclass(frozen=True)
class AttendedInPieces:
    """What attention_blocks.py's Attended makes, of the same tensors."""

    lengths: tuple[int, ...]
    shape: AttentionShape
    queries: int = QUERY_BLOCK
    takes: ClassVar[int] = 5

    def make(self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        documents, numbers = _documents(self.lengths, self.shape, self.queries)
        out = zero_behind(q, total_of(self.lengths))
        probabilities = q.new_empty(numbers if keeps_attention(q.dtype) else 0)
        plan = _plan(self.shape, cos.shape[1], self.queries)
        native.attention_forward((q, k, v), out, probabilities, (cos, sin), documents, plan)
        return out, (probabilities,)

    def back(
        self, dy: Tensor, kept: Sequence[Tensor], needed: Sequence[bool], again: bool, *origin: Tensor
    ) -> tuple[Gradients, Tensor | None]:
        q, k, v, cos, sin = origin
        documents, _ = _documents(self.lengths, self.shape, self.queries)
        used, plan = total_of(self.lengths), _plan(self.shape, cos.shape[1], self.queries)
        gradients = [zero_behind(part, used) for part in (q, k, v)]
        out = zero_behind(q, used) if again else None
        native.attention_backward(dy, (q, k, v), gradients, out, kept[0], (cos, sin), documents, plan)
        return (*gradients, None, None), out


def attention_of(
    lengths: tuple[Length, ...], shape: AttentionShape, products: Products, dtype: torch.dtype
) -> Attended | AttendedInPieces:
    """What computes attention in a type where `products` multiply: by heads if they say so, documents have no forks, scores no
    cap, and both are enough to keep all threads busy.
    """
    whole = tuple(length for length in lengths if isinstance(length, int))
    busy = len(lengths) * shape.kv_heads >= 2 * torch.get_num_threads()
    if products.by_heads and len(whole) == len(lengths) and not shape.cap and busy:
        small = dtype is torch.float32 and products.name != PIECES
        return AttendedInPieces(whole, shape, _SMALL_BLOCK if small else QUERY_BLOCK)
    return Attended(lengths, shape)


def _plan(shape: AttentionShape, half: int, queries: int) -> native.AttentionPlan:
    return native.AttentionPlan(shape.heads, shape.kv_heads, shape.head_dim, half, queries, shape.window, shape.scale)


def _documents(lengths: tuple[int, ...], shape: AttentionShape, queries: int) -> tuple[Tensor, int]:
    """(cpu.cpp's documents [count, 4] int64, longest first; numbers of all probabilities)."""
    rows, first, kept = [], 0, 0
    for length in lengths:
        size = rounded(length)
        rows.append((first, length, size, kept))
        first += length
        for start in range(0, size, queries):
            stop = min(start + queries, size)
            keys = stop - (max(0, start - shape.window + 1) if shape.window else 0)
            kept += shape.heads * (stop - start) * keys
    rows.sort(key=lambda row: -row[1])
    return torch.tensor(rows, dtype=torch.int64), kept
