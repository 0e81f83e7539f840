"""Answers to questions, and how near they are to the expected ones: by characters, without a dictionary.

Character bigrams and character ROUGE-L rank models as word-based ROUGE does, and single answers better (docs/evaluation.md).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

# Expected answers of at most so many characters, by their median, are compared as a whole.
SHORT = 30
_PAIRS = {"「": "」", "『": "』", '"': '"', "“": "”"}


@dataclass(frozen=True)
class Graded:
    """A question, the expected answer, the model's."""

    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        """Whether the answer is the expected one."""
        return bool(exact(self.answer, self.expected))


def grade(
    model: Any, tokenizer: Any, questions: Sequence[tuple[str, str]], *, batch_size: int = 32, max_new_tokens: int = 32
) -> list[Graded]:
    """Greedy answers to (question, expected answer) pairs, in their order."""
    from ..models.generation import generate_text  # comparing answers needs no torch

    conversations = [[{"role": "user", "content": question}] for question, _ in questions]
    answers = generate_text(
        model, tokenizer, conversations, max_new_tokens=max_new_tokens, do_sample=False, batch_size=batch_size
    )
    return [Graded(*pair, answer) for pair, answer in zip(questions, answers, strict=True)]


def exact_match(graded: Sequence[Graded]) -> float:
    """Share of right answers."""
    return sum(item.right for item in graded) / max(1, len(graded))


def normalized(text: str) -> str:
    """A text as answers are compared: NFKC, no blanks at the ends, no 。 at the end, no quotation marks around it."""
    text = unicodedata.normalize("NFKC", text).strip()
    while True:
        shorter = text.removesuffix("。").strip()
        inside = shorter[1:-1]
        if len(shorter) > 1 and _PAIRS.get(shorter[0]) == shorter[-1] and not {shorter[0], shorter[-1]} & set(inside):
            shorter = inside.strip()
        if shorter == text:
            return text
        text = shorter


def exact(answer: str, expected: str) -> float:
    """1.0 where both are the same after normalized(), else 0.0."""
    return float(normalized(answer) == normalized(expected))


def char_f1_jglue(answer: str, expected: str) -> float:
    """F1 of the characters as a bag, as JGLUE's JSQuAD counts them."""
    return _f1(Counter(normalized(answer)), Counter(normalized(expected)))


def char_bigram_f1(answer: str, expected: str) -> float:
    """F1 of the pairs of neighbouring characters (ROUGE-2 of characters); of a text of one character that alone."""
    return _f1(_bigrams(normalized(answer)), _bigrams(normalized(expected)))


def char_rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of characters."""
    return _ratio(normalized(answer), normalized(expected))


def char_f1_llm_jp(answer: str, expected: str) -> float:
    """What llm-jp-eval calls char_f1, which is no F1 of a bag: the common subsequence of both texts, their blank-separated
    words sorted (rapidfuzz's token_sort_ratio).
    """
    first, second = (
        " ".join(sorted(unicodedata.normalize("NFKC", text.strip()).split())) for text in (answer, expected)
    )
    return _ratio(first, second)


def _bigrams(text: str) -> Counter[str]:
    return Counter(text[start : start + 2] for start in range(max(1, len(text) - 1)) if text)


def _f1(first: Counter[str], second: Counter[str]) -> float:
    if not first or not second:
        return float(first == second)
    return 2 * (first & second).total() / (first.total() + second.total())


def _ratio(first: str, second: str) -> float:
    if not first or not second:
        return float(first == second)
    return 2 * common_subsequence(first, second) / (len(first) + len(second))


def common_subsequence(first: str, second: str) -> int:
    """Length of the longest common subsequence, a whole column of its table at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << place
    whole = (1 << len(first)) - 1
    state = whole
    for character in second:
        matched = state & places.get(character, 0)
        state = ((state + matched) | (state - matched)) & whole
    return len(first) - state.bit_count()


METRICS: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "char_f1_jglue": char_f1_jglue,
    "char_bigram_f1": char_bigram_f1,
    "char_rouge_l": char_rouge_l,
    "char_f1_llm_jp": char_f1_llm_jp,
}


def best_of(metric: str, answer: str, accepted: Sequence[str]) -> float:
    """The score against the accepted answer that it is nearest to."""
    return max(METRICS[metric](answer, expected) for expected in accepted)


def metrics_for(expected: Sequence[str]) -> tuple[str, ...]:
    """What a set of answers is measured by, the first being the one that is tested: decided by the expected answers alone,
    before any model has answered.
    """
    lengths = sorted(len(normalized(text)) for text in expected)
    short = bool(lengths) and lengths[len(lengths) // 2] <= SHORT
    return ("exact", "char_f1_jglue") if short else ("char_bigram_f1", "char_rouge_l")
