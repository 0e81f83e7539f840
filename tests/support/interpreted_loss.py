"""The Triton loss kernel in Triton's interpreter against plain torch, in fp32: one JSON line of relative errors, and of the
bytes that it takes beside what a plan declares for it.

A program of its own, as TRITON_INTERPRET has to be set before Triton is first imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

from unittest import mock

import torch

from ai_finetuning.kernels import triton_loss
from ai_finetuning.kernels.loss import one_kernel_cross_entropy, plain_cross_entropy
from ai_finetuning.kernels.triton_loss import cross_entropy
from ai_finetuning.planner._upstream import tensors_without_data
from ai_finetuning.planner.tracker import Tracker


def taken(rows: int, words: int) -> list[int]:
    """Bytes that a call takes, and those of the operator on tensors without data; the launch is left out, as the interpreter
    copies what it is given.
    """
    peaks = []
    with mock.patch.object(triton_loss, "_row", mock.MagicMock()), Tracker() as tracker:
        cross_entropy(torch.empty(rows, words), torch.zeros(rows, dtype=torch.int64), 0.0, True)
    peaks.append(tracker.peak)
    with tensors_without_data(), Tracker() as tracker:
        given = torch.empty(rows, words), torch.zeros(rows, dtype=torch.int64)
        one_kernel_cross_entropy(*given, cap=0.0, with_gradient=True)
    return [*peaks, tracker.peak]


def main() -> None:
    """Vocabularies below, at and above a block of words; the first, the last and a middle word as targets."""
    generator = torch.Generator().manual_seed(0)
    for rows, words in ((5, 1000), (3, 2048), (4, 5003)):
        for cap in (0.0, 5.0):
            for with_gradient in (True, False):
                logits = torch.randn(rows, words, generator=generator) * 4
                logits[0, 7] = 60.0  # nearly all of one row's probability
                targets = torch.randint(0, words, (rows,), generator=generator)
                targets[0], targets[1] = 0, words - 1
                mine, theirs = logits.clone(), logits.clone()
                got = cross_entropy(mine, targets, cap, with_gradient)
                expected = plain_cross_entropy(theirs, targets, cap=cap, with_gradient=with_gradient)
                errors = [
                    float((one - other).norm() / other.norm()) for one, other in ((got, expected), (mine, theirs))
                ]
                kept = with_gradient or mine.equal(logits)
                row = {"words": words, "cap": cap, "errors": errors, "kept": kept, "bytes": taken(rows, words)}
                print(json.dumps(row))


if __name__ == "__main__":
    main()
