"""Tokens drawn with random numbers of each answer's own: an answer does not depend on what is answered beside it.

transformers draws a whole batch from one generator, so that an answer changes with the size of the batch and with its
neighbours. Here every answer has a seed. A step takes one number in [0, 1) from it and looks up where that falls in the
cumulative distribution (inverse transform sampling), behind the same filters in the same order as transformers' own
sampling. The numbers come from Python's generator, so that they are the same on every device.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

# Of a number in [0, 1): so few that its product with a sum of probabilities stays below the sum.
_BITS = 32


def seed_of(seed: int, place: int, sample: int = 0) -> int:
    """The seed of one answer.

    Args:
        seed: of the command.
        place: of the question among the questions.
        sample: which of its answers.
    """
    return random.Random(f"{seed}/{place}/{sample}").getrandbits(63)


class _Draw(LogitsProcessor):
    """Leaves of each row's scores [rows, vocabulary] the token that the row's own random numbers draw."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self._generators = [random.Random(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # float64: the sum over a vocabulary keeps order and sum. Apple's GPUs have none.
        exact = scores.cpu() if scores.device.type == "mps" else scores
        cumulative = torch.softmax(exact.double(), dim=-1).cumsum(dim=-1)
        drawn = [generator.getrandbits(_BITS) / 2**_BITS for generator in self._generators]
        numbers = torch.tensor(drawn, dtype=torch.float64, device=cumulative.device)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, numbers, right=True).to(scores.device)
        return torch.full_like(scores, float("-inf")).scatter_(1, chosen, 0.0)


def drawing(options: Mapping[str, Any], seeds: Sequence[int], min_p: float | None) -> dict[str, Any]:
    """Arguments of `generate` that draw as these do, each row by its own seed.

    Args:
        options: do_sample (true), temperature, top_k, top_p.
        seeds: one a row.
        min_p: of the model's generation settings.
    """
    filters: list[LogitsProcessor] = [TemperatureLogitsWarper(float(options["temperature"]))]
    if options["top_k"]:
        filters.append(TopKLogitsWarper(int(options["top_k"])))
    if options["top_p"] < 1:
        filters.append(TopPLogitsWarper(float(options["top_p"])))
    if min_p is not None:
        filters.append(MinPLogitsWarper(min_p))
    off = dict.fromkeys(("temperature", "top_k", "top_p", "min_p"))
    return {**off, "do_sample": False, "logits_processor": LogitsProcessorList([*filters, _Draw(seeds)])}
