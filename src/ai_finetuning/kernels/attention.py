"""Attention that sees only its own document, for any model that transformers runs, on any device, in any dtype."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# The name under which transformers' AttentionInterface knows it.
NAME = "aift_documents"
# What a model may hand over besides queries, keys and values without changing the result of a causal attention.
_HARMLESS = frozenset(
    {"output_attentions", "use_cache", "cache_position", "is_causal", "output_router_logits", "head_mask"}
)  # fmt: skip


def document_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    document_lengths: tuple[int, ...] | None = None,
    position_ids: Tensor | None = None, scaling: float | None = None, dropout: float = 0.0,
    sliding_window: int | None = None, softcap: float | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Causal attention inside each document of one packed row.

    Args:
        query, key, value: [1, heads, tokens, d]; fewer heads in key and value are shared by groups of queries.
        document_lengths: of the documents in order; tokens after the last one get zeros.
        position_ids: [1, tokens]; where a model hands on only these (StableLM), documents begin at their zeros.
        scaling, dropout, sliding_window, softcap: as the model hands them over.

    Returns:
        [1, tokens, heads, d], as transformers expects it, and no weights.

    Raises:
        ValueError: no lengths, a mask of its own, or something that this attention does not know (such as sinks).
    """
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    lengths = document_lengths or _restarts(position_ids)
    if lengths is None or attention_mask is not None or unknown:
        raise ValueError(f"document attention was called with {', '.join(unknown) or 'no lengths or with a mask'}")
    groups = query.shape[1] // key.shape[1]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    parts: list[Tensor] = []
    for q, k, v in zip(*(x.split(_cover(lengths, x.shape[2]), dim=2) for x in (query, key, value)), strict=True):
        if len(parts) == len(lengths):  # padding
            parts.append(torch.zeros_like(q))
        elif softcap is None and (not sliding_window or q.shape[2] <= sliding_window):
            parts.append(
                F.scaled_dot_product_attention(
                    q, k, v, is_causal=q.shape[2] > 1, scale=scale, dropout_p=dropout, enable_gqa=groups > 1
                )
            )
        else:
            parts.append(_explicit(q, k, v, scale, dropout, sliding_window, softcap))
    return torch.cat(parts, dim=2).transpose(1, 2), None


def _restarts(position_ids: Tensor | None) -> tuple[int, ...] | None:
    if position_ids is None:
        return None
    starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
    return tuple(stop - start for start, stop in zip(starts, starts[1:], strict=False)) if starts[0] == 0 else None


def _cover(lengths: tuple[int, ...], tokens: int) -> list[int]:
    rest = tokens - sum(lengths)
    return [*lengths, rest] if rest else list(lengths)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """One document with a sliding window (arXiv:2004.05150) or capped scores (Gemma 2, arXiv:2408.00118)."""
    tokens = q.shape[2]
    place = torch.arange(tokens, device=q.device)
    distance = place[:, None] - place[None, :]
    seen = (distance >= 0) & (distance < (window or tokens))
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(weights, dropout), v)
