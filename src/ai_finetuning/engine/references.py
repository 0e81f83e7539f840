"""Log-probabilities of a run's answers before its first step, which preference losses compare with.

The reference of a run is its model as it stands before step 1, by the same way, precision and quantization: then no pair has a
margin at step 0, and no second model is ever held (docs/preference.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..data.answers import AnswerRows
from ..data.example import Example
from ..data.loader import evaluation_batches, evaluation_rows
from ..messages import warn
from ..system.out_of_memory import with_smaller_batches
from . import rng
from .preference_loss import score_answers
from .state import Run

# Batches of a process that exist at a time: the training data may be larger than the memory.
_AT_A_TIME = 64


def reference_scores(run: Run, examples: Sequence[Example], rows: AnswerRows, pad_token_id: int) -> Tensor:
    """[examples, 2, 2] fp32 as AnswerRows.reference; on every process, each of which has to call it.

    Raises:
        OutOfMemoryError: a row does not fit.
    """
    order = [row[0] for row in evaluation_rows(examples, None)]
    scores = torch.zeros(len(examples), 2, 2)
    own = _scored(run, examples, rows, pad_token_id, other=False)
    scores[order, : own.shape[1]] = torch.from_numpy(own)
    if rows.others is not None:
        scores[order, 1:] = torch.from_numpy(_scored(run, examples, rows, pad_token_id, other=True))
    return scores


def _scored(
    run: Run, examples: Sequence[Example], answers: AnswerRows, pad_token_id: int, *, other: bool
) -> np.ndarray:
    """[examples, sides, 2] fp32 in the order of evaluation_rows()."""
    loss, order = run.preference, evaluation_rows(examples, None)
    assert loss is not None

    def score(size: int, rows: Sequence[list[int]]) -> np.ndarray:
        batches = evaluation_batches(
            examples, batch_size=size, pad_token_id=pad_token_id, answers=answers, other=other, rows=rows
        )
        return score_answers(run.strategy, loss, batches)

    def work(size: int) -> np.ndarray:
        together = size * _AT_A_TIME * run.strategy.data_size
        return np.concatenate(
            [score(size, order[start : start + together]) for start in range(0, len(order), together)]
        )

    def on_halved(size: int, _: str) -> None:
        warn(
            f"参照の対数確率の計算でメモリーが足りないため、バッチを {size} 行にします。",
            f"out of memory while the reference log-probabilities are computed: retrying with batches of {size} rows.",
        )

    random_state = rng.DeviceRandomState()
    try:
        size = run.state.micro_batch_size
        return with_smaller_batches(work, size, on_halved) if run.retry_smaller else work(size)
    finally:
        random_state.restore()
