"""Sample answers for the report and the model card: a few rows before and after training, and general questions.

Nothing that a run computes depends on them: weights, modes, flags and random states are afterwards what they were, and
answers are greedy.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.example import Example
from ..data.forks import CHOSEN, side_of
from ..engine import rng
from ..errors import ToolkitError
from ..japanese.prompts import render
from ..labels import IGNORED
from ..messages import warn
from ..models.generation import continue_tokens, text_of
from ..models.parts import positions_of
from ..models.quantized import unchanged
from ..models.tokenizers import PromptStyle, prompt_style
from ..planner.length import ANSWER_TOKENS, ANSWERS_SECONDS
from ..planner.speed import AnswerPace

# Of an answer in tokens; of all answers of one moment in seconds; of a prompt in tokens.
NEW_TOKENS, SECONDS, LONGEST_PROMPT = ANSWER_TOKENS, ANSWERS_SECONDS, 512
# What every model card asks: questions of our own, so that a card shows no row of anybody's data.
GENERAL_QUESTIONS = (
    "自己紹介をしてください。",
    "日本の首都はどこですか？",
    "1週間は何日ありますか？",
    "朝のあいさつを丁寧な言葉で書いてください。",
)
# Stands for the question while the template's own text around it is looked for.
_MARK = "質問の場所"
# Tokens that an answer may not have in a row with the data, to be shown in a card; a usual phrase is shorter.
PIECE = 6
_FACTOR = np.int64(6364136223846793005)  # of a linear congruential generator modulo 2^64 (Knuth's MMIX)
# Of a plain text that is continued, in tokens.
_BEGINNING = 32


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        row: tokens of the prompt.
        text: what a person wrote of it.
        expected: the answer that the data has; empty where there is none.
    """

    row: list[int]
    text: str
    expected: str = ""


@dataclass(frozen=True)
class Sample:
    """A question and the answers of a model; None where time ran out, or where nothing has been asked yet."""

    question: str
    expected: str
    before: str | None
    after: str | None = None


def choose(
    examples: Sequence[Example], tokenizer: Any, config: Any, count: int, system: str | None = None
) -> list[Question]:
    """A few rows to ask, the same ones for the same rows in any order: those whose tokens have the lowest SHA-256.

    Args:
        examples: evaluation rows.
        config: the model's, for the number of its positions.
        count: most of them.
        system: the system text of the rows; it is not shown.
    """
    room = min(LONGEST_PROMPT, (positions_of(config) or LONGEST_PROMPT) - 1)
    style = prompt_style(tokenizer)
    chosen: list[Question] = []
    good = [item for item in examples if item.mark >= 0]  # what people call bad is no answer to show as the data's
    for item in sorted(good, key=lambda item: hashlib.sha256(item.input_ids.tobytes()).digest()):
        if len(chosen) == count:
            break
        question = _question(item, tokenizer, style, system)
        if 0 < len(question.row) <= room and question not in chosen:
            chosen.append(question)
    return chosen


def _answered(item: Example) -> Example:
    """Of a pair of answers the better one."""
    return side_of(item, CHOSEN) if item.fork else item


def _question(item: Example, tokenizer: Any, style: PromptStyle, system: str | None) -> Question:
    """The part of a row before its first answer, and that answer; of a plain text its beginning, and the rest."""
    item = _answered(item)
    ids, learnt = item.input_ids.tolist(), (item.labels != IGNORED).tolist()
    first = learnt.index(True)
    if first <= 1:
        first = min(_BEGINNING, len(ids) // 2)
        return Question(ids[:first], _plain(tokenizer, ids[:first], style), text_of(tokenizer, ids[first:], style))
    last = next((place for place in range(first, len(ids)) if not learnt[place]), len(ids))
    asked = _asked(tokenizer, ids[:first], style, system)
    return Question(ids[:first], asked, text_of(tokenizer, ids[first:last], style))


def last_question(item: Example, tokenizer: Any, style: PromptStyle, system: str | None = None) -> Question | None:
    """The part of a row before its last answer, and that answer; None for a plain text."""
    item = _answered(item)
    ids, learnt = item.input_ids.tolist(), (item.labels != IGNORED).tolist()
    stop = len(learnt) - learnt[::-1].index(True)
    first = next((place + 1 for place in range(stop - 1, -1, -1) if not learnt[place]), 0)
    if first <= 1:
        return None
    return Question(
        ids[:first], _asked(tokenizer, ids[:first], style, system), text_of(tokenizer, ids[first:stop], style)
    )


def _plain(tokenizer: Any, ids: Sequence[int], style: PromptStyle) -> str:
    text = str(tokenizer.decode(ids, skip_special_tokens=True))
    return text.replace(style.newline, "\n").strip() if style.newline else text.strip()


def _asked(tokenizer: Any, ids: Sequence[int], style: PromptStyle, system: str | None) -> str:
    """What stands in a prompt where the template has the user's turn; the whole prompt where it has more than that."""
    with contextlib.suppress(ToolkitError, ValueError):
        above = [{"role": "system", "content": system}] if system else []
        rendered = render(tokenizer, [*above, {"role": "user", "content": _MARK}], add_generation_prompt=True)
        around = tokenizer.decode(tokenizer.encode(rendered, add_special_tokens=False))
        start, end = around.split(_MARK)
        whole = str(tokenizer.decode(ids))
        if whole.startswith(start) and whole.endswith(end) and len(whole) > len(start) + len(end):
            text = whole[len(start) : len(whole) - len(end)]
            return text.replace(style.newline, "\n").strip() if style.newline else text.strip()
    return _plain(tokenizer, ids, style)


def general_questions(tokenizer: Any) -> list[Question]:
    """GENERAL_QUESTIONS as this model is asked."""
    asked = []
    for text in GENERAL_QUESTIONS:
        prompt = render(tokenizer, [{"role": "user", "content": text}], add_generation_prompt=True)
        asked.append(Question(tokenizer.encode(prompt, add_special_tokens=False), text))
    return asked


def repeats(tokenizer: Any, answer: str, rows: Sequence[Example]) -> bool:
    """Whether an answer has a piece of PIECE tokens, or all of a shorter answer, that stands among the label tokens of a
    row: a model that has learnt its data by heart may say a part of it to any question.
    """
    ids = tokenizer.encode(answer, add_special_tokens=False)
    width = min(PIECE, len(ids))
    if width == 0:
        return False
    pieces = np.sort(_pieces(np.asarray(ids, dtype=np.int64), width))
    for item in rows:
        learnt = item.input_ids[item.labels != IGNORED]
        if len(learnt) >= width and np.isin(_pieces(learnt.astype(np.int64), width), pieces).any():
            return True
    return False


def _pieces(ids: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """A number for each stretch of `width` ids, the same for the same ids (64 bits, so that others rarely share it)."""
    numbers = np.zeros(len(ids) - width + 1, dtype=np.int64)
    for place in range(width):
        numbers = numbers * _FACTOR + ids[place : place + len(numbers)] + 1  # wraps around
    return numbers


def answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    seconds: float = SECONDS,
    *,
    most: int = NEW_TOKENS,
    pace: AnswerPace | None = None,
) -> list[str | None]:
    """Greedy answers, one after the other; None from where the time is over, and where the model could not answer.

    Args:
        seconds: for all of them; an answer that is being written ends with them too.
        most: tokens of an answer.
        pace: is told how long their tokens took.
    """
    obtained: list[str | None] = []
    end = time.monotonic() + seconds
    with untouched(model):
        try:
            style = prompt_style(tokenizer, getattr(model, "generation_config", None))
            for question in questions:
                left = end - time.monotonic()
                if left <= 0:
                    break
                tokens = min(most, (positions_of(model.config) or 2**31) - len(question.row))
                options = {"max_new_tokens": tokens, "do_sample": False, "max_time": left}
                with (pace or AnswerPace()).timed(lambda: _written(tokenizer, obtained[-1])):
                    obtained.append(continue_tokens(model, tokenizer, question.row, style=style, **options))
        except Exception as error:  # whatever a model's own code raises: no reason to lose a run
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
            warn(
                f"回答の例を作れませんでした（{reason}）。学習には影響しません。",
                f"the sample answers could not be made ({reason}); training is not affected.",
            )
    return [*obtained, *[None] * (len(questions) - len(obtained))]


def _written(tokenizer: Any, answer: str | None) -> int:
    """About how many tokens an answer took, its end included."""
    return len(tokenizer.encode(answer or "", add_special_tokens=False)) + 1


@contextlib.contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Eval mode; afterwards modes, flags of quantized layers and every random state are as before."""
    state = rng.capture()
    try:
        with unchanged(model):
            yield
    finally:
        rng.restore(state)
