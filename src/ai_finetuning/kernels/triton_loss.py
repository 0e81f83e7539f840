"""Cross entropy and its gradient over rows of logits in one kernel for GPUs.

Imported on them alone (kernels/loss.py), as it needs Triton, which comes with torch for CUDA. Logits are read twice and
written once, whatever the vocabulary; plain torch makes some ten fp32 copies of them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # words at a time
_LEAST = tl.constexpr(-1e30)  # for words beyond the last one; minus infinity would make differences of two of them


@triton.jit  # type: ignore[untyped-decorator]
def _row(
    logits: tl.tensor,
    targets: tl.tensor,
    losses: tl.tensor,
    words: tl.tensor,
    cap: tl.constexpr,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
) -> None:
    # One program a row.
    row = tl.program_id(0).to(tl.int64)
    start = logits + row * words
    target = tl.load(targets + row)
    place = tl.arange(0, block)
    chosen = tl.load(start + target).to(tl.float32)
    if cap != 0:
        chosen = cap * (2 * tl.sigmoid(2 * chosen / cap) - 1)  # tanh
    largest = tl.full((block,), _LEAST, tl.float32)
    total = tl.zeros((block,), tl.float32)
    for first in range(0, words, block):
        score = tl.load(start + first + place, mask=first + place < words, other=_LEAST).to(tl.float32)
        if cap != 0:
            score = tl.where(first + place < words, cap * (2 * tl.sigmoid(2 * score / cap) - 1), _LEAST)
        higher = tl.maximum(largest, score)
        total = total * tl.exp(largest - higher) + tl.exp(score - higher)
        largest = higher
    top = tl.max(largest, axis=0)
    log_sum = top + tl.log(tl.sum(total * tl.exp(largest - top), axis=0))
    tl.store(losses + row, log_sum - chosen)
    if with_gradient:
        for first in range(0, words, block):
            inside = first + place < words
            score = tl.load(start + first + place, mask=inside, other=0.0).to(tl.float32)
            slope = 1.0
            if cap != 0:
                bent = 2 * tl.sigmoid(2 * score / cap) - 1
                score = cap * bent
                slope = 1 - bent * bent
            share = tl.exp(score - log_sum)
            share = tl.where(first + place == target, share - 1, share) * slope
            tl.store(start + first + place, share.to(logits.dtype.element_ty), mask=inside)


def cross_entropy(logits: Tensor, targets: Tensor, cap: float, with_gradient: bool) -> Tensor:
    """plain_cross_entropy (kernels/loss.py) in one kernel: losses [rows] in fp32; logits [rows, words], contiguous, become
    their gradient where it is asked for.
    """
    rows, words = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    if rows:
        with torch.cuda.device(logits.device.index if logits.is_cuda else -1):  # Triton takes the current device
            _row[(rows,)](logits, targets, losses, words, cap, with_gradient, _BLOCK, num_warps=8)
    return losses
