"""Answers to questions, and how many are right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..models.generation import generate_text


@dataclass(frozen=True)
class Graded:
    """A question, the expected answer, the model's."""

    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is exactly the expected one."""
        return self.answer.strip() == self.expected.strip()


def grade(
    model: Any, tokenizer: Any, questions: Sequence[tuple[str, str]], *, batch_size: int = 32, max_new_tokens: int = 32
) -> list[Graded]:
    """Greedy answers to (question, expected answer) pairs, in their order."""
    conversations = [[{"role": "user", "content": question}] for question, _ in questions]
    answers = generate_text(
        model, tokenizer, conversations, max_new_tokens=max_new_tokens, do_sample=False, batch_size=batch_size
    )
    return [Graded(*pair, answer) for pair, answer in zip(questions, answers, strict=True)]


def exact_match(graded: Sequence[Graded]) -> float:
    """Share of right answers."""
    return sum(item.right for item in graded) / max(1, len(graded))
