"""Pairs of answers as a task: which of the two a model finds likelier, so that any model can be asked, with or without a
reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.example import Example
from ..data.forks import CHOSEN, REJECTED, side_of
from ..japanese.prompts import render
from ..labels import IGNORED
from .likelihood import Likelihood, Scored, encode_pairs
from .tasks import PAIR_METRICS, Item

# What a run asks for the language of answers alone; the pairs say whether they are better.
ANSWERS = "answers"


def scored_side(pair: Example, side: int) -> Scored | None:
    """The last answer of a side of a forked row, to its turn end, behind all that comes before it; None without one, or
    with nothing before it.
    """
    whole = side_of(pair, side)
    learnt = (whole.labels != IGNORED).tolist()
    if True not in learnt:
        return None
    stop = len(learnt) - learnt[::-1].index(True)
    first = next((place + 1 for place in range(stop - 1, -1, -1) if not learnt[place]), 0)
    return Scored(tuple(whole.input_ids[:stop].tolist()), first, 0) if first > 0 else None


def scored_row(pair: Example) -> tuple[Scored, ...]:
    """Both answers of a forked row, the better one first; empty where one cannot be scored."""
    sides = [scored_side(pair, side) for side in (CHOSEN, REJECTED)]
    return tuple(side for side in sides if side is not None) if None not in sides else ()


def scored_item(item: Item, tokenizer: Any, messages: Sequence[dict[str, str]]) -> tuple[Scored, ...]:
    """Both answers of an item as one tokenizer's model reads them.

    Args:
        messages: the conversation that asks, with its system prompt.
    """
    if item.scored:
        return item.scored
    prompt = render(tokenizer, list(messages), add_generation_prompt=True)
    return tuple(encode_pairs(tokenizer, [(prompt, choice) for choice in item.choices]))


def row_of(item: Item, likelihoods: Sequence[Likelihood]) -> dict[str, Any]:
    """A line of the results: equal likelihoods are no preference."""
    chosen, rejected = likelihoods
    scores = {
        PAIR_METRICS[0]: int(chosen.nats / max(1, chosen.tokens) > rejected.nats / max(1, rejected.tokens)),
        PAIR_METRICS[1]: int(chosen.nats > rejected.nats),
    }
    return {
        "item": item.name,
        "score": scores[PAIR_METRICS[0]],
        "scores": scores,
        "nats": [round(found.nats, 6) for found in likelihoods],
        "tokens": [found.tokens for found in likelihoods],
    }
