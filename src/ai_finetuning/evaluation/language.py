"""Whether a model still answers in Japanese, and stops: a gate of its own, since judges and accuracies do not see it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import Reason
from ..japanese.language import (
    find_chinese,
    find_english,
    find_foreign,
    find_loop,
    find_refusal,
    find_template_token,
    ja_share,
)


@dataclass(frozen=True)
class Answered:
    """A question with an answer and why that ended (models.generation.End)."""

    question: str
    answer: str
    end: str = "stop"


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with an answer.

    Attributes:
        title: what a report calls it.
        found: whether an answer has it.
        veto: a model that does it more often than before is not taken, whatever else it has learnt.
    """

    title: Reason
    found: Callable[[Answered], bool]
    veto: bool = False


FAULTS: dict[str, Fault] = {
    "english": Fault(
        Reason("英語で答えた", "answered in English"), lambda item: bool(find_english(item.answer, item.question)), True
    ),
    "chinese": Fault(
        Reason("中国語が混ざる", "Chinese in it"), lambda item: bool(find_chinese(item.answer, item.question)), True
    ),
    "loop": Fault(
        Reason("同じ言葉の繰り返し", "repeats itself"),
        lambda item: item.end == "loop" or bool(find_loop(item.answer)),
        True,
    ),
    "template": Fault(
        Reason("テンプレートの記号が出る", "marks of a template"),
        lambda item: bool(find_template_token(item.answer)),
        True,
    ),
    "foreign": Fault(
        Reason("ほかの文字が混ざる", "letters of other scripts"),
        lambda item: bool(find_foreign(item.answer, item.question)),
    ),
    "refusal": Fault(Reason("回答を断った", "declined to answer"), lambda item: bool(find_refusal(item.answer))),
    "empty": Fault(Reason("回答が空", "empty"), lambda item: not item.answer.strip()),
    "cut": Fault(Reason("長さの上限で終わった", "ended by length"), lambda item: item.end in ("length", "positions")),
}


def faults_of(answered: Answered) -> tuple[str, ...]:
    """Names of what is wrong with an answer."""
    return tuple(name for name, fault in FAULTS.items() if fault.found(answered))


def share_of(answer: str) -> float | None:
    """The share of Japanese characters of an answer; None of an empty one."""
    return ja_share(answer) if answer.strip() else None


def mean_share(shares: Sequence[float | None]) -> float:
    """The mean of the shares that there are; 0 where there is none."""
    told = [share for share in shares if share is not None]
    return sum(told) / len(told) if told else 0.0
