"""How often the compiled part of a GPU's step, FlexAttention, is compiled over rows of varied lengths.

Dynamo decides that, by its guards; its graphs run as they are here. Inductor for CPUs does not compile them: in torch 2.13 its
C++ for FlexAttention names a variable that is not there where a mask reads a tensor under dynamic shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ai_finetuning.kernels import attention

# Documents of the first rows of a run, and of those after them: their number, their lengths and the row's length vary; rows of
# one block (128 tokens) and of one document are among both.
_FIRST = ((200, 3), (90, 90, 300), (700,), (60, 30))
_LATER = ((1, 640), (140, 2, 2, 2), (400, 1), (33, 150), (256, 256), (129,), (5, 5, 5, 5, 5, 100))
KINDS: dict[str, dict[str, Any]] = {"plain": {}, "window": {"sliding_window": 50}, "capped": {"softcap": 30.0}}


def graphs(kind: str) -> tuple[int, int]:
    """Graphs that are compiled over the first rows, and over those that follow."""
    torch._dynamo.reset()
    attention.forget_masks()
    made = 0

    def backend(module: Any, inputs: Any) -> Any:
        nonlocal made
        made += 1
        return module.forward

    compiled: Any = torch.compile(flex_attention, dynamic=True, backend=backend)
    kept, attention._flex = attention._flex, lambda _: compiled
    try:
        counts = []
        for rows in (_FIRST, _LATER):
            before = made
            for lengths in rows:
                _row(lengths, KINDS[kind])
            counts.append(made - before)
    finally:
        attention._flex = kept
        torch._dynamo.reset()
    return counts[0], counts[1]


@torch.no_grad()
def _row(lengths: tuple[int, ...], options: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, heads, sum(lengths), 16, generator=generator) for heads in (4, 2))
    obtained: list[Tensor] = [
        way(None, q, k, k, None, seq_lens=lengths, **options)[0]
        for way in (attention.flex_document_attention, attention.document_attention)
    ]
    assert torch.allclose(*obtained, atol=1e-5), lengths
