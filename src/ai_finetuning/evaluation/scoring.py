"""Evaluation loss of a model that is loaded already."""

from __future__ import annotations

from typing import Any

from ..config.data import DataConfig
from ..data.loader import evaluation_batches
from ..data.prepare import load_examples
from ..engine.loss import make_loss
from ..engine.metrics import text_metrics
from ..parallel.strategies.single import SingleDevice


def score(
    model: Any, tokenizer: Any, source: Any, config: DataConfig, *, batch_size: int = 16
) -> dict[str, float | None]:
    """Nats per token, perplexity and bits per character of any data that training takes, as a run's evaluation counts
    them.

    Args:
        model: a Llama-like causal language model, or an adapter on one.
        source: a path, texts, rows or conversations.
        config: how rows become tokens; `max_length` is the most context that a token sees.
        batch_size: rows at a time.

    Raises:
        DataError: data that cannot be scored.
    """
    examples, _, _ = load_examples(source, tokenizer, config)
    device = SingleDevice(model.device)
    device.prepare(model, make_loss(logits_to_keep=False))
    batches = evaluation_batches(examples, batch_size=batch_size, pad_token_id=tokenizer.pad_token_id)
    loss_sum, tokens = device.evaluate(batches)
    return text_metrics(loss_sum, tokens, sum(item.characters for item in examples))
