"""How close one model's next-token distributions are to another's, and how well each predicts the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import ConfigError
from ..models.modes import evaluating

TOP = 5
# Positions of which fp32 distributions are held at a time.
CHUNK = 256


@dataclass(frozen=True)
class Agreement:
    """How close two models' next-token distributions are: mean KL in nats, share of equal most likely tokens."""

    kl: float
    top1: float


def logits_of(model: Any, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """fp32 logits [tokens, vocabulary] of each [1, tokens] input, in eval mode."""
    with evaluating(model):
        return [_logits(model, ids).float() for ids in batches]


def agreement(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> Agreement:
    """KL(first || second) and top-1 agreement over all positions of logits [tokens, vocabulary]."""
    pairs = [_divergence(left, right) for left, right in zip(first, second, strict=True)]
    count = max(1, sum(len(kl) for kl, _ in pairs))
    return Agreement(sum(float(kl.sum()) for kl, _ in pairs) / count, sum(int(same.sum()) for _, same in pairs) / count)


def distance(first: Sequence[torch.Tensor], second: Sequence[torch.Tensor]) -> float:
    """Norm of the difference of two models' centred logits over the norm of the first ones' (a constant added to all
    logits of a position changes no probability).
    """
    apart = whole = 0.0
    for left, right in zip(first, second, strict=True):
        a, b = (item.double() - item.double().mean(-1, keepdim=True) for item in (left, right))
        apart += float((a - b).square().sum())
        whole += float(a.square().sum())
    return math.sqrt(apart / whole) if whole else 0.0


def _divergence(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(left || right) in nats and whether the most likely token is the same, of every position."""
    a, b = left.log_softmax(-1), right.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1), left.argmax(-1) == right.argmax(-1)


@torch.no_grad()
def compare_logits(original: Any, quantized: Any, inputs: Sequence[torch.Tensor]) -> dict[str, Any]:
    """Agreement over all positions of all inputs, and what both models lose on the next tokens.

    Args:
        original, quantized: in eval mode, with the same vocabulary.
        inputs: [1, tokens] each.

    Returns:
        `agreement`: mean_kl, p99_kl, max_kl (nats, KL(original || quantized)), top1 (share of positions with the same
            most likely token),
        top5 (mean share of the five most likely tokens that both have), mean_cosine, min_cosine (of the logits),
        tokens.
        `loss`: nats of each model, summed over the predicted tokens; `predicted`: their number.

    Raises:
        ConfigError: vocabularies of different size.
    """
    rows: list[torch.Tensor] = []
    losses: list[torch.Tensor] = []
    for ids in inputs:
        left, right = (_logits(model, ids) for model in (original, quantized))
        _require_one_vocabulary(left, right)
        after = torch.cat((ids[0, 1:].cpu(), torch.zeros(1, dtype=torch.int64)))
        nats = []
        for start in range(0, ids.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            row, lost = _positions(left[part].float(), right[part].float(), after[part])
            rows.append(row)
            nats.append(lost)
        losses.append(torch.cat(nats)[:-1])
    kl, top1, top5, cosine = torch.cat(rows).double().unbind(1)
    lost = torch.cat(losses).double()
    return {
        "agreement": {
            "mean_kl": float(kl.mean()),
            "p99_kl": float(kl.kthvalue(math.ceil(0.99 * len(kl))).values),
            "max_kl": float(kl.max()),
            "top1": float(top1.mean()),
            "top5": float(top5.mean()),
            "mean_cosine": float(cosine.mean()),
            "min_cosine": float(cosine.min()),
            "tokens": len(kl),
        },
        "loss": {"original": float(lost[:, 0].sum()), "quantized": float(lost[:, 1].sum())},
        "predicted": len(lost),
    }


def _logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """[tokens, vocabulary] on the CPU, in the model's dtype."""
    device = next(model.parameters()).device
    logits: torch.Tensor = model(input_ids=ids.to(device), use_cache=False).logits
    return logits[0].cpu()


def _require_one_vocabulary(left: torch.Tensor, right: torch.Tensor) -> None:
    if left.shape[-1] != right.shape[-1]:
        raise ConfigError(
            f"2 つのモデルの語彙が違います（{left.shape[-1]} と {right.shape[-1]}）。同じモデルの量子化前後を渡してください。",
            f"the models' vocabularies differ ({left.shape[-1]} and {right.shape[-1]}); pass one model before and "
            "after quantization.",
        )


def _positions(left: torch.Tensor, right: torch.Tensor, after: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[positions, (KL, same top token, shared of the top five, cosine)] and [positions, 2] nats of the token that
    follows.
    """
    kl, same = _divergence(left, right)
    count = min(TOP, left.shape[-1])
    best, other = left.topk(count, -1).indices, right.topk(count, -1).indices
    shared = (best[:, :, None] == other[:, None, :]).any(-1).float().mean(-1)
    cosine = torch.nn.functional.cosine_similarity(left, right, dim=-1)
    nats = torch.stack([-side.log_softmax(-1).gather(1, after[:, None])[:, 0] for side in (left, right)], 1)
    return torch.stack((kl.clamp(min=0), same.float(), shared, cosine), 1), nats  # rounding can take KL below 0


def first_divergence(left: Sequence[int], right: Sequence[int], ends: Sequence[int]) -> int | None:
    """Position of the first token in which two continuations differ, up to their end token; None where they are the
    same.
    """
    for position, (one, other) in enumerate(zip(left, right, strict=True)):
        if one != other:
            return position
        if one in ends:
            return None
    return None
