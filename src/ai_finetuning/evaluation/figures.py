"""Which numbers of a run's evaluations people read: of texts losses a token, of pairs and marked answers what their loss is
about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import Reason

# Title, and key of a row of metrics.jsonl.
Figure = tuple[Reason, str]

OF_TEXTS: tuple[Figure, ...] = (
    (Reason("評価損失（トークンあたり nat）", "evaluation loss (nats per token)"), "eval_loss"),
    (Reason("パープレキシティ", "perplexity"), "eval_perplexity"),
    (Reason("文字あたりビット数", "bits per character"), "eval_bits_per_character"),
)
# A loss over answers has no perplexity. What a run does not have is left out.
OF_ANSWERS: tuple[Figure, ...] = (
    (
        Reason("評価損失（回答の組、または印の付いた回答あたり）", "evaluation loss (a pair, or a marked answer)"),
        "eval_loss",
    ),
    (
        Reason("良い回答の報酬が上回る組の割合", "share of pairs whose better answer has the higher reward"),
        "eval_rewards/accuracies",
    ),
    (Reason("報酬の差（良い回答 − 悪い回答）", "margin of the rewards (better - worse)"), "eval_rewards/margins"),
    (Reason("良い回答の対数確率", "log-probability of the better answers"), "eval_logps/chosen"),
    (Reason("悪い回答の対数確率", "log-probability of the worse answers"), "eval_logps/rejected"),
    (Reason("参照モデルとの KL（KTO の基準）", "KL to the reference (KTO's reference point)"), "eval_kl"),
)
PREFIXES = ("rewards/", "eval_rewards/")


def compares_answers(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether rows of metrics.jsonl, or of a summary, are of a run over pairs or marked answers."""
    return any(key.startswith(PREFIXES) for row in rows for key in row)


def figures_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Figure, ...]:
    """The numbers to show of a run's evaluations."""
    if not compares_answers(rows):
        return OF_TEXTS
    return tuple(item for item in OF_ANSWERS if any(row.get(item[1]) is not None for row in rows))
