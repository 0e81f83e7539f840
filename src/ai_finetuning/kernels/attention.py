"""Attention that sees only its own document, for any model that transformers runs, on any device, in any dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import Reason
from ..system.transfer import send
from .stand_in import FusedAttention, noted_documents, only_allocating

# Names under which transformers' AttentionInterface knows them (IMPLEMENTATIONS, below): a loop over documents, and two
# kernels over the row.
NAME, FLEX, VARLEN = "aift_documents", "aift_documents_flex", "aift_documents_varlen"
# Side of FlexAttention's blocks, in tokens.
_BLOCK = 128
# On a CPU: rows of scores that are made at once, and the longest document whose probabilities are kept for the backward
# pass.
_ROWS, _KEPT = 128, 1024
# A document's tokens; of one with a fork (docs/preference.md) those of its prefix and of each of its branches.
Length = int | tuple[int, ...]
# What a model may hand over besides queries, keys and values without changing the result of a causal attention.
_HARMLESS = frozenset(
    {"output_attentions", "use_cache", "cache_position", "is_causal", "output_router_logits", "head_mask"}
)


class Unsuited(ValueError):
    """A kernel does not compute what it is asked for; another one has to."""

    def __init__(self, japanese: str, english: str) -> None:
        super().__init__(english)
        self.reason = Reason(japanese, english)


@dataclass(frozen=True)
class _Documents:
    """What a model hands over with queries, keys and values.

    Attributes:
        lengths: of the documents in order; tokens after the last one get zeros. Of one with a fork those of its prefix and
            of its branches: a branch sees the prefix and itself, as if it followed the prefix at once.
        scaling: factor of the scores; None for one over the root of the head's width.
        dropout: of the probabilities.
        sliding_window: most keys that a query sees, itself included.
        softcap: scores become softcap * tanh(score / softcap).
    """

    lengths: tuple[Length, ...]
    scaling: float | None = None
    dropout: float = 0.0
    sliding_window: int | None = None
    softcap: float | None = None


def document_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Causal attention inside each document of one packed row.

    Args:
        query, key, value: [1, heads, tokens, d]; fewer heads in key and value are shared by groups of queries.
        **options: as the model hands them over:
            seq_lens, of the documents in order, forks among them; tokens after the last one get zeros;
            position_ids, [1, tokens]; where a model hands on only these (StableLM), documents begin at their zeros;
            scaling, dropout, sliding_window, softcap.

    Returns:
        [1, tokens, heads, d], as transformers expects it, and no weights.

    Raises:
        ValueError: no lengths, a mask of its own, or something that this attention does not know (such as sinks).
    """
    return _one_by_one(query, key, value, _understood(attention_mask, **options)), None


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, documents: _Documents) -> Tensor:
    """A loop over the documents: [1, tokens, heads, d]."""
    query, key = _as_values(query, key, value)
    lengths = documents.lengths
    parts: list[Tensor] = []
    cover = _cover(lengths, query.shape[2])
    for q, k, v in zip(*(torch.split(x, cover, dim=2) for x in (query, key, value)), strict=True):
        if len(parts) == len(lengths):  # padding
            parts.append(torch.zeros_like(q))
            continue
        length = lengths[len(parts)]
        parts.append(_one(q, k, v, documents) if isinstance(length, int) else _forked(q, k, v, length, documents))
    return torch.cat(parts, dim=2).transpose(1, 2)


def _forked(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], documents: _Documents) -> Tensor:
    """A document with a fork. The first branch follows the prefix in the row already, so both are one document; each later
    branch sees the prefix in front of it.
    """
    prefix, first, *others = lengths
    start = prefix + first
    parts = [_one(q[:, :, :start], k[:, :, :start], v[:, :, :start], documents)]
    for branch in others:
        own = slice(start, start + branch)
        keys, values = (torch.cat([x[:, :, :prefix], x[:, :, own]], dim=2) for x in (k, v))
        parts.append(_one(q[:, :, own], keys, values, documents))
        start += branch
    return torch.cat(parts, dim=2)


def _one(q: Tensor, k: Tensor, v: Tensor, documents: _Documents) -> Tensor:
    """[1, heads, queries, d] of a causal document whose last tokens are the queries."""
    dropout, window, softcap = documents.dropout, documents.sliding_window, documents.softcap
    groups, first = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    scale = documents.scaling if documents.scaling is not None else q.shape[-1] ** -0.5
    if softcap is not None or (window and k.shape[2] > window):
        return _explicit(q, k, v, scale, dropout, window, softcap)
    if not dropout and _products_are_faster(q):
        return _by_products(q[0], k[0], v[0], scale)[None]
    mask = _seen(q.shape[2], k.shape[2], None, q.device) if first and q.shape[2] > 1 else None
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        is_causal=mask is None and q.shape[2] > 1,
        scale=scale,
        dropout_p=dropout,
        enable_gqa=groups > 1,
    )


def _seen(queries: int, keys: int, window: int | None, device: torch.device) -> Tensor:
    """[queries, keys] bool: which keys the last tokens of a document see."""
    place = torch.arange(keys, device=device)
    distance = place[keys - queries :, None] - place[None, :]
    return (distance >= 0) & (distance < (window or keys))


def _as_values(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys in the dtype of the values: under autocast, rotation by fp32 tables leaves them in fp32 where the
    weights are (full fine-tuning).
    """
    dtype = value.dtype
    return (query, key) if query.dtype is dtype and key.dtype is dtype else (query.to(dtype), key.to(dtype))


def _shared(make: Any, like: Tensor, *given: Any) -> Any:
    """What a function with a cache makes of a step's lengths, once for all layers. Among tensors of another class it is
    made anew, so that none of them ever reaches a real step; a simulation forgets its own (forget_masks).
    """
    return make(*given) if type(like) is Tensor or only_allocating() else make.__wrapped__(*given)


def _understood(
    mask: Tensor | None,
    *,
    seq_lens: tuple[Length, ...] | None = None,
    position_ids: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> _Documents:
    """The documents, or a refusal of a call that means more than them."""
    unknown = sorted(name for name, value in others.items() if value is not None and name not in _HARMLESS)
    lengths = seq_lens or (noted_documents() if only_allocating() else _restarts(position_ids))
    if lengths is None or mask is not None or unknown:
        raise ValueError(f"document attention was called with {', '.join(unknown) or 'no lengths or with a mask'}")
    return _Documents(lengths, scaling, dropout, sliding_window, softcap)


def _restarts(position_ids: Tensor | None) -> tuple[int, ...] | None:
    if position_ids is None:
        return None
    starts = [*(position_ids[0] == 0).nonzero()[:, 0].tolist(), position_ids.shape[1]]
    return tuple(stop - start for start, stop in zip(starts, starts[1:], strict=False)) if starts[0] == 0 else None


def total_of(lengths: tuple[Length, ...]) -> int:
    """Tokens of documents."""
    return sum(_sizes(lengths))


def _sizes(lengths: tuple[Length, ...]) -> list[int]:
    return [length if isinstance(length, int) else sum(length) for length in lengths]


def _cover(lengths: tuple[Length, ...], tokens: int) -> list[int]:
    """Tokens of each document, and of the padding behind them."""
    sizes = _sizes(lengths)
    rest = tokens - sum(sizes)
    return [*sizes, rest] if rest else sizes


def _products_are_faster(q: Tensor) -> bool:
    """Measured (benchmarks/attention.py); in fp32 SDPA is the faster one for short documents."""
    return q.device.type == "cpu" and (_ROWS if q.dtype is torch.float32 else 0) < q.shape[2] <= _KEPT


def _by_products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One causal document, whose last tokens are the queries, as plain matrix products: [heads, queries, d].

    The fused SDPA of torch 2.13 on CPUs takes two to four times as long in bf16, its backward pass above all. Keys
    after a block of rows are never touched, which is half of them.
    """
    heads, tokens, width = q.shape
    shared, first = k.shape[0], k.shape[1] - tokens
    parts = []
    for start in range(0, tokens, _ROWS):
        stop = min(start + _ROWS, tokens)
        rows = q[:, start:stop].reshape(shared, -1, width)
        unseen = _shared(_later, q, first + start, first + stop, heads // shared, q.dtype)
        scores = torch.baddbmm(unseen, rows, k[:, : first + stop].transpose(1, 2), alpha=scale)
        parts.append(torch.bmm(scores.softmax(dim=-1), v[:, : first + stop]).view(heads, stop - start, width))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@lru_cache(maxsize=64)  # a step's layers share those of its documents
def _later(start: int, stop: int, groups: int, dtype: torch.dtype) -> Tensor:
    """[groups x rows, keys]: minus infinity where a key comes after the row's token, else 0."""
    unseen = torch.ones(stop - start, stop, dtype=torch.bool).triu(start + 1)
    return torch.zeros(unseen.shape, dtype=dtype).masked_fill_(unseen, float("-inf")).repeat(groups, 1)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float, window: int | None, softcap: float | None
) -> Tensor:
    """One document, whose last tokens are the queries, with a sliding window (arXiv:2004.05150) or capped scores (Gemma 2,
    arXiv:2408.00118).
    """
    seen = _seen(q.shape[2], k.shape[2], window, q.device)
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, scale=scale, dropout_p=dropout, enable_gqa=q.shape[1] != k.shape[1]
        )
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = torch.matmul(q, k.transpose(2, 3)) * scale
    scores = torch.tanh(scores / softcap) * softcap
    weights = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(F.dropout(weights, dropout), v)


def flex_document_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """document_attention in one kernel over the row (FlexAttention, arXiv:2412.05496): for GPUs, where a loop over
    documents is slow.

    Blocks of keys that no query of a block sees are never computed. Attention dropout, which FlexAttention does not
    have, takes the loop. On a CPU it computes without fusion and, in torch 2.13, forward only.
    """
    documents = _understood(attention_mask, **options)
    if documents.dropout:
        return _one_by_one(query, key, value, documents), None
    if only_allocating():
        return FusedAttention.apply(*_as_values(query, key, value), value).transpose(1, 2), None
    lengths, window = documents.lengths, documents.sliding_window
    tokens, used = query.shape[2], total_of(lengths)
    padding = (tokens - used,) if used < tokens else ()
    mask = _shared(document_blocks, value, (*lengths, *padding), window or 0, query.device)
    kernel = {}
    if query.is_cuda:
        capability = torch.cuda.get_device_capability(query.device)
        kernel = {"kernel_options": flex_options(value.dtype, query.shape[-1], capability)}
    mixed = _flex(query.is_cuda)(
        *_as_values(query, key, value),
        value,
        score_mod=_shared(_capped, value, documents.softcap, query.device),
        block_mask=mask,
        scale=documents.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        **kernel,
    )
    if used < tokens:
        mixed = F.pad(mixed[:, :, :used], (0, 0, 0, tokens - used))
    return mixed.transpose(1, 2), None


# Compute capabilities whose blocks of threads have room (166,912 bytes of shared memory and more) for the blocks that torch
# takes in fp32: A100, H100, B200 and B300. Elsewhere there are 65,536 (Turing) or 101,376.
_ROOMY = frozenset({(8, 0), (9, 0), (10, 0), (10, 3)})
# Smaller blocks for fp32 by the most features of a head that they hold: at most 73,984 bytes (57,344 on Turing), where torch's
# own take up to 147,968 (docs/decisions/0129). Its backward pass has the smallest blocks that there are.
_SMALL = {
    128: {"fwd_BLOCK_M": 64, "fwd_BLOCK_N": 32, "fwd_num_stages": 2},
    256: {"fwd_BLOCK_M": 32, "fwd_BLOCK_N": 16, "fwd_num_stages": 2},
}


def flex_options(dtype: torch.dtype, width: int, capability: tuple[int, int]) -> dict[str, int | bool]:
    """FlexAttention's kernel options on a GPU, by the features of a head and the compute capability."""
    # Without this one, rows shorter than a block would take the kernel for decoding, which has no backward pass.
    options: dict[str, int | bool] = {"FORCE_USE_FLEX_ATTENTION": True}
    if dtype is torch.float32 and capability not in _ROOMY and width > 64:
        options |= next((blocks for most, blocks in _SMALL.items() if width <= most), {})
    return options


@lru_cache(maxsize=2)
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    plain: Callable[..., Any] = flex_attention  # a tensor alone, unless it is asked for more
    # dynamic: rows without padding have another number of tokens in every step.
    return torch.compile(plain, dynamic=True) if compiled else plain


@lru_cache(maxsize=4)  # one function for all layers and steps
def _capped(softcap: float | None, device: torch.device) -> Callable[..., Tensor] | None:
    if softcap is None:
        return None
    # A tensor, as a number caught by the function becomes a symbol under `dynamic`, which Inductor cannot lower (torch
    # 2.13: "unbacked_bindings"), so that Gemma 2 would never have the kernel.
    cap = torch.tensor(softcap, device=device)

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return torch.tanh(score / cap) * cap

    return capped


@lru_cache(maxsize=4)  # a step's layers share one mask, or two where only some have a window
def document_blocks(lengths: tuple[Length, ...], window: int, device: torch.device) -> Any:
    """FlexAttention's BlockMask of causal documents, made from their lengths: no mask of tokens x tokens ever exists.

    Args:
        lengths: of all documents in the row, forks among them.
        window: most keys that a query sees, itself included; 0 for all.
    """
    from torch.nn.attention.flex_attention import BlockMask

    forked = any(not isinstance(length, int) for length in lengths)
    # A prefix with its first branch is a run of tokens like a document; so is each later branch.
    runs = [run for length in lengths for run in _runs(length)]
    sizes = torch.tensor([size for size, _ in runs])
    tokens = int(sizes.sum())
    place = torch.arange(tokens)
    # The first key that each query sees in its run; it never decreases along the row.
    lowest = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes)
    begin = lowest
    if window:
        lowest = torch.maximum(lowest, place - window + 1)
    first = torch.arange(0, tokens, _BLOCK)
    last = (first + _BLOCK).clamp_max(tokens) - 1
    before = first[None, :] < first[:, None]
    full = (last - first + 1 == _BLOCK)[:, None]
    whole = before & (first[None, :] >= lowest[last][:, None]) & full
    some = (before & (last[None, :] >= lowest[first][:, None])) | torch.eye(len(first), dtype=torch.bool)
    if forked:
        low, high = _prefixes(runs, sizes, place - begin, window)
        least, most = _extremes(torch.where(high > low, low, tokens))[0], _extremes(high)[1]
        some |= before & (first[None, :] < most[:, None]) & (last[None, :] >= least[:, None])
        (_, lows), (highs, _) = _extremes(low), _extremes(high)
        whole |= before & (first[None, :] >= lows[:, None]) & (last[None, :] < highs[:, None]) & full
    lowest = send(lowest, device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (key >= lowest[query])

    seen = sees
    if forked:
        low, high = send(low, device), send(high, device)

        def sees_prefix(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            own = (key <= query) & (key >= lowest[query])
            return own | ((key >= low[query]) & (key < high[query]))

        seen = sees_prefix

    return BlockMask.from_kv_blocks(
        *_listed(some & ~whole, device),
        *_listed(whole, device),
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(tokens, tokens),
    )


def _runs(length: Length) -> list[tuple[int, tuple[int, int]]]:
    """(tokens, (tokens since the prefix began, tokens of the prefix)) of each run of a document; (0, 0) without one."""
    if isinstance(length, int):
        return [(length, (0, 0))]
    prefix, first, *others = length
    runs, since = [(prefix + first, (0, 0))], prefix + first
    for branch in others:
        runs.append((branch, (since, prefix)))
        since += branch
    return runs


def _prefixes(
    runs: list[tuple[int, tuple[int, int]]], sizes: Tensor, inside: Tensor, window: int
) -> tuple[Tensor, Tensor]:
    """([tokens], [tokens]) int64: which keys of its prefix, from `low` to before `high`, each query of a later branch sees; a
    window counts places in the conversation. Others have an empty span at 0.

    Args:
        inside: [tokens], places in the runs.
    """
    since, prefix = (torch.tensor([part[index] for _, part in runs]) for index in (0, 1))
    begin = sizes.cumsum(0) - sizes - since
    low, high = (torch.where(prefix > 0, ends, 0) for ends in (begin, begin + prefix))
    low, high, prefix = (torch.repeat_interleave(part, sizes) for part in (low, high, prefix))
    if window:
        low = torch.minimum(torch.maximum(low, low + prefix + inside - window + 1), high)
        low = torch.where(prefix > 0, low, 0)
    return low, high


def _extremes(values: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest of the values [tokens] of each block of queries: ([blocks], [blocks])."""
    parts = torch.split(values, _BLOCK)
    return torch.stack([part.min() for part in parts]), torch.stack([part.max() for part in parts])


def _listed(blocks: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries has, and which, those first: [1, 1, blocks] and [1, 1, blocks,
    blocks].
    """
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    count, which = (send(item.to(torch.int32), device)[None, None] for item in (blocks.sum(1), order))
    return count, which


def varlen_document_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """document_attention by torch's kernels for variable lengths (FlashAttention-2, arXiv:2307.08691), which are compiled
    already and share keys among groups of queries without copies. Attention dropout takes the loop.

    Raises:
        Unsuited: it computes in 16 bit, without forks and capped scores, and with heads of at most 256 features.
    """
    documents = _understood(attention_mask, **options)
    if documents.dropout:
        return _one_by_one(query, key, value, documents), None
    _refuse_what_varlen_lacks(value, documents)
    if only_allocating():
        return FusedAttention.apply(*_as_values(query, key, value), value).transpose(1, 2), None
    tokens, used = query.shape[2], total_of(documents.lengths)
    lengths = tuple(_cover(documents.lengths, tokens))
    longest, window = max(lengths), documents.sliding_window
    ends = _shared(_ends, value, lengths, query.device)
    mixed = _varlen()(
        # squeeze, not [0], whose backward pass fills zeros and copies
        *(x.squeeze(0).transpose(0, 1) for x in (*_as_values(query, key, value), value)),
        ends,
        ends,
        longest,
        longest,
        scale=documents.scaling,
        # Keys before and behind a query that it sees; a window counts the query's own as well.
        window_size=(window - 1, 0) if window and window < longest else (-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    if used < tokens:
        mixed = F.pad(mixed[:used], (0, 0, 0, 0, 0, tokens - used))
    return mixed[None], None


def _refuse_what_varlen_lacks(value: Tensor, documents: _Documents) -> None:
    if any(not isinstance(length, int) for length in documents.lengths):
        raise Unsuited("分かれ目のある文書に対応していません", "it takes no documents with a fork")
    if value.dtype not in (torch.float16, torch.bfloat16):
        raise Unsuited("16bit の計算だけです", "it computes in 16 bit only")
    if documents.softcap is not None:
        raise Unsuited("スコアの上限（softcap）に対応していません", "it has no capped scores")
    width = value.shape[-1]
    if width % 8 or width > 256:
        raise Unsuited(f"ヘッドの幅 {width} に対応していません", f"it takes no heads of {width} features")


@lru_cache(maxsize=1)
def _varlen() -> Callable[..., Tensor]:
    """torch's function; versions before 2.13 have none, or one that takes less, which the probe of a run finds out."""
    from torch.nn.attention.varlen import varlen_attn

    attention: Callable[..., Any] = varlen_attn  # a tensor alone, unless it is asked for more
    return attention


@lru_cache(maxsize=4)  # a step's layers share one
def _ends(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """[documents + 1] int32: where each document begins, and the end of the last one."""
    return send(torch.tensor([0, *lengths]).cumsum(0).to(torch.int32), device)


def forget_masks() -> None:
    """Masks that are kept for a step's layers go."""
    for kept in (_later, document_blocks, _capped, _ends):
        kept.cache_clear()


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, None]]] = {
    NAME: document_attention,
    FLEX: flex_document_attention,
    VARLEN: varlen_document_attention,
}
# What messages call them.
LABELS = {
    NAME: Reason("文書ごとのループ", "a loop over documents"),
    FLEX: Reason("FlexAttention", "FlexAttention"),
    VARLEN: Reason("varlen_attn", "varlen_attn"),
}
# What to try on a device, best first; every other device takes the loop. `cuda` stands for GPUs whose generation is not
# known (AMD's number theirs otherwise).
BY_DEVICE: dict[str, tuple[str, ...]] = {"cuda": (FLEX, NAME)}
# The same for NVIDIA's, from a compute capability on, newest first (docs/decisions/0119).
BY_CAPABILITY: dict[tuple[int, int], tuple[str, ...]] = {
    (12, 0): (VARLEN, FLEX, NAME),  # Blackwell for desktops
    (10, 0): (FLEX, VARLEN, NAME),  # Blackwell for servers
    (8, 0): (VARLEN, FLEX, NAME),  # Ampere, Ada, Hopper
    (7, 5): (FLEX, NAME),  # Turing
    (0, 0): (NAME,),
}


def implementations_for(device: torch.device) -> tuple[str, ...]:
    """Names of the implementations to try on a device, best first; the loop over documents is always among them."""
    if device.type != "cuda" or not torch.cuda.is_available() or torch.version.hip is not None:
        return BY_DEVICE.get(device.type, (NAME,))
    capability = torch.cuda.get_device_capability(device)
    return next(names for least, names in BY_CAPABILITY.items() if capability >= least)
