"""Likelihoods of a model that is spread over processes or devices: read off the forward pass of an evaluation, so that
every strategy computes them in its own way. Answers are not written so: generation needs a whole model in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.example import Example
from ..data.loader import evaluation_batches, evaluation_rows
from ..engine.predictions import Predictions
from ..errors import Reason
from ..labels import IGNORED
from ..parallel.strategy import Strategy
from .likelihood import Likelihood, Scored


class SpreadLikelihoods:
    """The likelihoods of tokens behind others, one forward pass each, by whatever strategy holds the model.

    Args:
        items: what is scored; the same in every process.

    Attributes:
        predictions: what the strategy's loss is built with (execution.build.loss_of, engine.loss).
    """

    def __init__(self, items: Sequence[Scored]) -> None:
        self._items = list(items)
        self._examples = [_example(item) for item in self._items]
        order = [place for row in evaluation_rows(self._examples, None) for place in row]
        self._found: Any = None
        self.predictions = Predictions(order, [item.labels for item in self._examples], self._take, _sums)

    def _take(self, found: Any, _: np.ndarray) -> dict[str, Any]:
        self._found = found
        return {}

    def score(self, strategy: Strategy, *, batch_size: int, pad_token_id: int) -> list[Likelihood]:
        """A likelihood for each item, on every process; every process has to call it."""
        batches = evaluation_batches(self._examples, batch_size=batch_size, pad_token_id=pad_token_id)
        with self.predictions.collect():
            strategy.evaluate(batches)
        self.predictions.metrics(strategy, len(batches))
        return [
            Likelihood(float(nats), len(item.ids) - item.first, item.characters, bool(greedy))
            for item, (nats, greedy) in zip(self._items, self._found, strict=True)
        ]


def _example(item: Scored) -> Example:
    ids = np.asarray(item.ids, dtype=np.int32)
    labels = ids.copy()
    labels[: item.first] = IGNORED
    return Example(ids, labels, item.characters)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """[1, 2]: the sum of the label tokens' log-probabilities in double, and whether each is the largest."""
    targets = labels[0, 1:].to(logits.device)
    kept = targets != IGNORED
    rows, wanted = logits[0, :-1][kept].float(), targets[kept].long()
    nats = torch.log_softmax(rows, -1).gather(1, wanted[:, None]).double().sum()
    greedy = (rows.argmax(-1) == wanted).all().double()
    return torch.stack([nats, greedy])[None]


def why_no_answers(strategy: str) -> Reason | None:
    """Why answers are not written under a strategy, as reports say it; None where they are."""
    if strategy in ("single", "model_parallel"):
        return None
    return Reason(
        f"測っていません: {strategy} ではモデルが複数のプロセスに分かれ、回答を生成できません（学習後に aift eval で測れます）",
        f"not measured: under {strategy} the model is spread over processes, and no answers are written (aift eval measures "
        "them after training)",
    )
