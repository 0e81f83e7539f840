"""What a run's evaluation has written, as the page shows it: answers before and after, failures first. Needs no torch.

`eval.jsonl` and `samples.jsonl` may be of anybody: whatever is no answer is left out, and no more than so much is read.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.run_folder import EVAL, SAMPLES
from ...evaluation.language import FAULTS, share_of
from ...runs.rows import rows_of, step_of

# Bytes of a file that are read, characters of a text that are compared, and answers of one page.
_MOST, _COMPARED, PAGE = 16 << 20, 600, 10
_RIGHT = 1.0
_BLANKS = re.compile(r"\s+")
# What a chat template writes between the turns of a question; people read a line break there.
_MARKS = re.compile(r"\s*(?:</?s>|<\|\w{1,20}\|>)+\s*")


@dataclass(frozen=True)
class Answers:
    """Answers to one question.

    Attributes:
        expected: what the data has; empty where there is none.
        before, after: texts; None where that side was not asked.
        scores: before and after, 1 for right; None where it was not measured.
        faults: keys of FAULTS, of the answer after.
    """

    item: str
    question: str
    expected: str
    before: str | None
    after: str | None
    scores: tuple[float | None, float | None]
    faults: tuple[str, ...] = ()

    @property
    def failed(self) -> bool:
        """Whether the trained model's answer is wrong, or has a fault."""
        return bool(self.faults) or (self.scores[1] is not None and self.scores[1] < _RIGHT)

    @property
    def lost(self) -> bool:
        """Whether it was better before."""
        before, after = self.scores
        return before is not None and after is not None and after < before


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of a run; none where there is no such file."""
    try:
        if not stat.S_ISREG(file.lstat().st_mode):
            return []
        with file.open("rb") as stream:
            return rows_of(stream.read(_MOST))
    except OSError:
        return []


def answers_of(folder: Path) -> list[Answers]:
    """The answers of a run's verdict, else of its fixed questions; what got worse first, then failures, then the rest."""
    found = _of_verdict(read_rows(folder / EVAL)) or _of_samples(read_rows(folder / SAMPLES))
    return sorted(found, key=lambda one: (not one.lost, not one.failed, one.scores[1] or 0.0))


def _of_verdict(rows: Iterable[Mapping[str, Any]]) -> list[Answers]:
    sides: dict[str, dict[str, Mapping[str, Any]]] = {"before": {}, "after": {}}
    for row in rows:
        side, item = row.get("side"), row.get("item")
        if (
            row.get("task") == "data"
            and isinstance(item, str)
            and side in sides
            and _text(row.get("answer")) is not None
        ):
            sides[str(side)][item] = row
    found = []
    for item in dict.fromkeys([*sides["after"], *sides["before"]]):
        before, after = sides["before"].get(item, {}), sides["after"].get(item, {})
        told = after or before
        accepted = told.get("accepted")
        expected = accepted[0] if isinstance(accepted, list) and accepted else ""
        faults = after.get("faults")
        found.append(
            Answers(
                item=item,
                question=_asked(told.get("question")),
                expected=str(expected),
                before=_text(before.get("answer")),
                after=_text(after.get("answer")),
                scores=(_score(before.get("score")), _score(after.get("score"))),
                faults=tuple(name for name in FAULTS if isinstance(faults, list) and name in faults),
            )
        )
    return found


def _of_samples(rows: Sequence[Mapping[str, Any]]) -> list[Answers]:
    """The first and the last answers to the fixed questions, which have no scores."""
    by_question: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if step_of(row.get("step")) is not None and isinstance(row.get("question"), str):
            by_question.setdefault(row["question"], []).append(row)
    return [
        Answers(
            item=str(number),
            question=_asked(question),
            expected=str(told[0].get("expected") or ""),
            before=_text(told[0].get("answer")) if told[0]["step"] == 0 else None,
            after=_text(told[-1].get("answer")),
            scores=(None, None),
        )
        for number, (question, told) in enumerate(by_question.items())
    ]


def last_answers(folder: Path) -> dict[str, str]:
    """The last answer of a run to each question that it was asked."""
    return {one.question: one.after for one in answers_of(folder) if one.after is not None and one.question}


def _asked(value: Any) -> str:
    return _MARKS.sub("\n", str(value or "")).strip()


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _score(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None


def shown(one: Answers) -> dict[str, Any]:
    """Answers as JSON; those after in pieces, [text, whether the expected answer has it too]."""
    share = None if one.after is None else share_of(one.after)
    return {
        "item": one.item,
        "question": one.question,
        "expected": one.expected,
        "before": one.before,
        "after": None if one.after is None else pieces(one.after, one.expected),
        "scores": list(one.scores),
        "failed": one.failed,
        "lost": one.lost,
        "faults": [{"ja": FAULTS[name].title.ja, "en": FAULTS[name].title.en} for name in one.faults],
        "japanese": share,
    }


def pieces(answer: str, expected: str) -> list[tuple[str, bool]]:
    """An answer in pieces that the expected one has too, and those that it does not; whole where there is none to compare
    with, or where both are long.
    """
    if not expected or len(answer) > _COMPARED or len(expected) > _COMPARED:
        return [(answer, True)]
    parts, at = [], 0
    for block in difflib.SequenceMatcher(None, answer, expected, autojunk=False).get_matching_blocks():
        if block.a > at:
            parts.append((answer[at : block.a], False))
        if block.size:
            parts.append((answer[block.a : block.a + block.size], True))
        at = block.a + block.size
    return [(text, same or not _BLANKS.sub("", text)) for text, same in parts]
