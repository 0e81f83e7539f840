"""The Triton loss kernel in Triton's interpreter against plain torch, in fp32: one JSON line of relative errors.

A program of its own, as TRITON_INTERPRET has to be set before Triton is first imported.
"""

from __future__ import annotations

import json
import os

os.environ["TRITON_INTERPRET"] = "1"

import torch

from ai_finetuning.kernels.loss import plain_cross_entropy
from ai_finetuning.kernels.triton_loss import cross_entropy


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
                print(
                    json.dumps(
                        {"words": words, "cap": cap, "errors": errors, "kept": with_gradient or mine.equal(logits)}
                    )
                )


if __name__ == "__main__":
    main()
