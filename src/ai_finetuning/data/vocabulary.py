"""Rows that do not survive a tokenizer: characters that the vocabulary does not hold, line ends and blanks that it
drops, characters that its normalization replaces.

Asked of the distinct characters of the data, once each: a few thousand short texts, whatever the number of rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Any

from ..errors import localized
from ..japanese.classes import distinct
from ..japanese.prompts import render
from .messages import PlainText, Sample, messages_of

_EXAMPLES, _TOGETHER = 8, 64
# What is drawn and stored as a blank; a run of two is asked for beside the characters.
_BLANKS = frozenset("\n\r\t\x0b\x0c\x85\u2028\u2029 \u3000\xa0")
_RUN = "  "


@dataclass(frozen=True)
class VocabularyLoss:
    """Rows that encoding and decoding change.

    Attributes:
        rows: rows of the data.
        unknown_rows, unknown: rows with characters that become the unknown token, and such characters, the most
            frequent first.
        blank_rows, blanks: rows whose line ends, tabs or runs of blanks are not kept, and which of them.
        changed_rows, changed: rows with other characters that the tokenizer's normalization replaces on purpose, as
            `① → 1`.
    """

    rows: int = 0
    unknown_rows: int = 0
    unknown: tuple[str, ...] = ()
    blank_rows: int = 0
    blanks: tuple[str, ...] = ()
    changed_rows: int = 0
    changed: tuple[str, ...] = ()

    def with_rows_of(self, later: VocabularyLoss) -> VocabularyLoss:
        """Of the rows of two sources together."""
        return VocabularyLoss(
            self.rows + later.rows,
            self.unknown_rows + later.unknown_rows,
            tuple(dict.fromkeys(self.unknown + later.unknown)),
            self.blank_rows + later.blank_rows,
            tuple(dict.fromkeys(self.blanks + later.blanks)),
            self.changed_rows + later.changed_rows,
            tuple(dict.fromkeys(self.changed + later.changed)),
        )

    @property
    def survives(self) -> bool:
        """Whether every row comes back as it was."""
        return not (self.unknown_rows or self.blank_rows or self.changed_rows)


@dataclass
class VocabularyCounts:
    """The same in numbers that add up.

    Attributes:
        rows, unknown_rows, blank_rows, changed_rows: see VocabularyLoss.
        unknown, blanks, changed: how often each character stands in the rows.
        becomes: what a changed character comes back as.
    """

    rows: int = 0
    unknown_rows: int = 0
    blank_rows: int = 0
    changed_rows: int = 0
    unknown: Counter[str] = field(default_factory=Counter)
    blanks: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    becomes: dict[str, str] = field(default_factory=dict)

    def merge(self, later: VocabularyCounts) -> None:
        """Adds the numbers of other rows."""
        self.rows += later.rows
        self.unknown_rows += later.unknown_rows
        self.blank_rows += later.blank_rows
        self.changed_rows += later.changed_rows
        self.unknown.update(later.unknown)
        self.blanks.update(later.blanks)
        self.changed.update(later.changed)
        self.becomes |= later.becomes

    def loss(self) -> VocabularyLoss:
        """What is reported of them."""
        return VocabularyLoss(
            self.rows,
            self.unknown_rows,
            _frequent(self.unknown),
            self.blank_rows,
            tuple(map(_named, _frequent(self.blanks))),
            self.changed_rows,
            tuple(f"{unit} → {self.becomes[unit]}" for unit in _frequent(self.changed)),
        )


class VocabularyMeter:
    """Counts what a tokenizer loses of samples; each character is asked for once, when it is first met."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._asked: set[str] = set()
        self._unknown: set[str] = set()
        self._changed: dict[str, str] = {}

    @cached_property
    def _template_writes_lines(self) -> bool:
        """Whether the chat template replaces the line ends of a message."""
        return "あ\nい" not in render(
            self._tokenizer, [{"role": "user", "content": "あ\nい"}], add_generation_prompt=True
        )

    def count(self, samples: Sequence[Sample]) -> VocabularyCounts:
        """What is lost of the texts of some samples (of the messages, not of the template around them)."""
        talk = [_text(sample) for sample in samples if not isinstance(sample, PlainText)]
        plain = [sample.text for sample in samples if isinstance(sample, PlainText)]
        run = {_RUN} if any(_RUN[0] in text and _RUN in text for text in (*talk, *plain)) else set()
        new = (distinct((*talk, *plain)) | run) - self._asked
        unknown, changed = _lost(sorted(new), self._tokenizer)
        self._asked |= new
        self._unknown |= unknown
        self._changed |= changed
        counts = VocabularyCounts(len(samples))
        if not self._unknown and not self._changed:
            return counts
        blanks = {unit for unit in self._changed if set(unit) <= _BLANKS}
        # A line end that the template writes in a way of its own (rinna's `<NL>`) is not lost.
        in_talk = blanks - ({"\n"} if "\n" in blanks and self._template_writes_lines else set())
        for name, found in (
            ("unknown", _rows(talk + plain, self._unknown)),
            ("blanks", [*_rows(talk, in_talk), *_rows(plain, blanks)]),
            ("changed", _rows(talk + plain, set(self._changed) - blanks)),
        ):
            getattr(counts, name).update(chain.from_iterable(found))
            setattr(counts, f"{name.removesuffix('s')}_rows", len(found))
        counts.becomes = {unit: self._changed[unit] for unit in counts.changed}
        return counts


def vocabulary_loss(samples: Sequence[Sample], tokenizer: Any) -> VocabularyLoss:
    """What a tokenizer loses of the texts of some samples."""
    return VocabularyMeter(tokenizer).count(samples).loss()


def vocabulary_line(loss: VocabularyLoss) -> str | None:
    """The loss in one line in the locale's language; None where every row survives."""
    parts = [
        localized(
            f"{ja} {count}/{loss.rows}（{count / loss.rows:.1%}、{', '.join(examples)}）",
            f"{en}: {count} of {loss.rows} ({count / loss.rows:.1%}): {', '.join(examples)}",
        )
        for count, examples, ja, en in (
            (
                loss.unknown_rows,
                loss.unknown,
                "語彙にない文字（学べません）を含む行",
                "rows with characters that the vocabulary does not hold",
            ),
            (
                loss.blank_rows,
                loss.blanks,
                "改行や空白がトークナイザーで失われる行",
                "rows that lose line ends or blanks",
            ),
            (
                loss.changed_rows,
                loss.changed,
                "トークナイザーの正規化で文字が変わる行",
                "rows with characters that the tokenizer normalizes",
            ),
        )
        if count
    ]
    return localized("。", "; ").join(parts) if parts else None


def _text(sample: Sample) -> str:
    if isinstance(sample, PlainText):
        return sample.text
    return "".join(part for item in messages_of(sample) for part in (item.reasoning, item.content, item.input))


def _lost(units: Sequence[str], tokenizer: Any) -> tuple[set[str], dict[str, str]]:
    """(units that become the unknown token, units that come back as something else with what they come back as).

    Many are asked together, and halved where the text does not come back. Every unit stands between two characters that
    the vocabulary knows, so that nothing is trimmed.
    """
    unknown_id = tokenizer.unk_token_id
    frame = next((mark for mark in "あaの" if unknown_id not in _ids(mark, tokenizer)), "a")
    unknown: set[str] = set()
    changed: dict[str, str] = {}
    waiting = [list(units[start : start + _TOGETHER]) for start in range(0, len(units), _TOGETHER)]
    while waiting:
        asked = waiting.pop()
        text = frame + frame.join(asked) + frame
        ids = _ids(text, tokenizer)
        is_unknown = unknown_id is not None and unknown_id in ids
        back = tokenizer.decode(ids)
        if back == text and not is_unknown:
            continue
        if len(asked) > 1:
            waiting += [asked[: len(asked) // 2], asked[len(asked) // 2 :]]
        elif is_unknown:
            unknown.add(asked[0])
        else:
            changed[asked[0]] = back.removeprefix(frame).removesuffix(frame)
    return unknown, changed


def _ids(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _rows(texts: Sequence[str], units: set[str]) -> list[list[str]]:
    """For each text that has any of the units: those that it has, as often as it has them."""
    if not units:
        return []
    single = "".join(re.escape(unit) for unit in units if len(unit) == 1)
    pattern = re.compile("|".join(([_RUN] if _RUN in units else []) + ([f"[{single}]"] if single else [])))
    return [found for found in map(pattern.findall, texts) if found]


def _frequent(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(counts, key=lambda unit: (-counts[unit], unit))[:_EXAMPLES])


def _named(unit: str) -> str:
    return localized("連続する空白", "runs of blanks") if unit == _RUN else repr(unit)[1:-1]
