"""From a trainer's compute_metrics to what collects predictions in an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..data.example import Example
from ..data.loader import evaluation_rows
from ..engine.predictions import Predictions
from .trainer_hooks import TrainerHooks


def predictions_for(hooks: TrainerHooks, examples: Sequence[Example], packing_length: int | None) -> Predictions | None:
    """What collects the predictions over some rows; None where nobody asks for metrics.

    Args:
        examples: of the evaluation, in their order.
        packing_length: of a packed row, or None.
    """
    compute = hooks.compute_metrics
    if compute is None or not examples:
        return None
    from transformers import EvalPrediction

    def metrics(predictions: Any, labels: np.ndarray) -> Any:
        return compute(EvalPrediction(predictions=predictions, label_ids=labels))

    order = [document for row in evaluation_rows(examples, packing_length) for document in row]
    return Predictions(order, [item.labels for item in examples], metrics, hooks.preprocess_logits_for_metrics)
