"""Which way of products.py is the fastest for a model on this processor, found once by a short trial.

The answer is kept: a trial in every run would let the bits of a run depend on what else the machine was doing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..system.files import is_private, read_bounded, replacing
from ..system.folders import private_cache
from .attention_blocks import AttentionShape
from .attention_pieces import attention_of
from .blocks import Made
from .build import processor
from .products import (
    OPENBLAS,
    OPENBLAS_HEADS,
    PIECES,
    PIECES_HEADS,
    TORCH,
    TORCH_HEADS,
    Products,
    openblas_version,
    release,
    rounded,
    why_no_pieces,
    why_not_here,
)

# Time of torch's products over another way's from which on that one is taken.
_WORTH = 1.03
# Rounds of a trial, the longest side of a weight in it, and the side from which on a model is tried: the narrow ones spend
# their time on calls.
_ROUNDS, _LONGEST, _WIDE = 5, 2048, 256
# Tokens of the documents of a trial's row. A round has some more in each, as rows of a training are never twice the same,
# and libraries that make code for each shape spend time on new ones.
_LENGTHS = (173, 41, 96, 58, 119, 29)


def chosen_products(shapes: Sequence[tuple[int, int]], attention: AttentionShape, dtype: torch.dtype) -> str:
    """The way that takes the least time here for linear layers of these shapes (outputs, inputs) and this attention, as it was
    found once for this processor, these versions and this number of threads; torch where the answer cannot be kept.

    Args:
        dtype: that the fused blocks compute in, bf16 or fp32.
    """
    ways = _ways(dtype)
    if len(ways) == 1 or max(map(min, shapes), default=0) < _WIDE:
        return TORCH
    tried = sorted({(min(outputs, _LONGEST), min(inputs, _LONGEST)) for outputs, inputs in shapes})
    versions = [torch.__version__, np.__version__, openblas_version()]
    known = [processor(), *versions, torch.get_num_threads(), tried, astuple(attention), str(dtype), ways]
    entry = private_cache("products") / f"{hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]}.json"
    if (kept := _kept(entry, ways)) is not None:
        return kept
    seconds = _seconds(tried, attention, dtype, ways)
    release()
    if (kept := _kept(entry, ways)) is not None:  # by a process that began beside this one
        return kept
    fastest = min(ways, key=lambda name: seconds[name])
    obtained = fastest if seconds[TORCH] >= _WORTH * seconds[fastest] else TORCH
    with contextlib.suppress(OSError), replacing(entry, mode=0o600) as file:
        file.write(json.dumps({"products": obtained, "seconds": seconds}).encode())
    return _kept(entry, ways) or TORCH


def _ways(dtype: torch.dtype) -> list[str]:
    """Those to choose among that can compute here, torch first."""
    if dtype is not torch.float32:
        return [name for name in (TORCH, PIECES_HEADS) if why_not_here(name, dtype) is None]
    others = (TORCH_HEADS, OPENBLAS_HEADS) if why_no_pieces(dtype) is None else (OPENBLAS,)
    return [name for name in (TORCH, *others) if why_not_here(name, dtype) is None]


def _kept(entry: Path, ways: Sequence[str]) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        if is_private(entry) and (kept := json.loads(read_bounded(entry, 10_000))["products"]) in ways:
            return str(kept)
    return None


def _seconds(
    shapes: Sequence[tuple[int, int]], attention: AttentionShape, dtype: torch.dtype, ways: Sequence[str]
) -> dict[str, float]:
    """Of each way the shortest time of a pass forward and back through one layer of each shape and one attention; the ways
    take turns, because other processes take time from all of them.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    longest = rounded(sum(_LENGTHS) + len(_LENGTHS) * _ROUNDS)
    layers = [(random(longest, inputs), random(outputs, inputs)) for outputs, inputs in shapes]
    heads = [random(longest, number * attention.head_dim) for number in _heads(attention)]
    best = dict.fromkeys(ways, float("inf"))
    for number in range(_ROUNDS + 1):
        lengths = tuple(length + number for length in _LENGTHS)
        for name in ways:
            began = time.perf_counter()
            _one_pass(Products(name), layers, heads, lengths, attention)
            if number:  # the first one loads what later ones use
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def _heads(attention: AttentionShape) -> tuple[int, int, int]:
    return attention.heads, attention.kv_heads, attention.kv_heads


@torch.enable_grad()
def _one_pass(
    products: Products,
    layers: Sequence[tuple[Tensor, Tensor]],
    heads: Sequence[Tensor],
    lengths: tuple[int, ...],
    attention: AttentionShape,
) -> None:
    rows = rounded(sum(lengths)) if products.library == PIECES else sum(lengths)
    for x, weight in layers:
        y = products.mm(x[:rows], weight.t())
        products.add(products.mm(y, weight), y, weight)
    angles = torch.zeros(rows, attention.head_dim // 2)
    given = [part[:rows].detach().requires_grad_() for part in heads]
    mixed = Made.apply(attention_of(lengths, attention, products, heads[0].dtype), *given, angles, angles)
    torch.autograd.grad(mixed, given, mixed.detach())
