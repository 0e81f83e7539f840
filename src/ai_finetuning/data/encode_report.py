"""What happened on the way from samples to tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import localized
from .vocabulary import VocabularyLoss, vocabulary_line

_ADDED = (
    "rows",
    "tokens",
    "label_tokens",
    "characters",
    "over_long",
    "lost_label_tokens",
    "dropped",
    "split_conversations",
    "without_end",
    "pairs",
    "cut_pairs",
    "good",
    "bad",
)
# Ratios of lengths are counted in steps of a sixteenth of an octave: their median is off by 2 % at most.
RATIO_STEPS = 16
# A better answer that is longer than so many times the worse one teaches length (docs/preference.md).
LONG_CHOSEN = 2.0
# Good answers for each bad one, by weight, as the authors of KTO advise (arXiv:2402.01306, Eq. 8), and how far off is said.
BALANCE, UNBALANCED = (1.0, 4 / 3), 2.0


@dataclass
class EncodeReport:
    """What happened on the way from samples to tokens.

    Attributes:
        left_out: bad rows of the data.
        left_out_reasons: of each reason (Japanese, English) how many; lists, as a cache holds them.
        without_end: rows that were cut before the end of every answer: they teach no end.
        special_tokens: tokens of the tokenizer that stand in plain texts, or as its own markup in messages, and how often.
        not_in_prompt: keys of messages that the template left out (`reasoning_content`, `tools`), by rows.
        system: the system text, where all conversations have the same.
        pairs: of answers; cut_pairs those left out as they are cut before the answers differ.
        length_ratios: pairs by the length of the chosen answer in lengths of the rejected one: RATIO_STEPS times log2.
        good, bad: answers by their mark.
        swapped, contradicting: pairs that stand the other way round elsewhere, and rows one answer of which is the better
            in one row and the worse in another, or good here and bad there; of each the first ones, by name.
    """

    rows: int = 0
    tokens: int = 0
    label_tokens: int = 0
    characters: int = 0
    longest: int = 0
    over_long: int = 0
    lost_label_tokens: int = 0
    dropped: int = 0
    split_conversations: int = 0
    max_length: int = 0
    left_out: int = 0
    left_out_reasons: list[list[Any]] = field(default_factory=list)
    without_end: int = 0
    special_tokens: dict[str, int] = field(default_factory=dict)
    not_in_prompt: dict[str, int] = field(default_factory=dict)
    vocabulary: VocabularyLoss = field(default_factory=VocabularyLoss)
    system: str | None = None
    pairs: int = 0
    cut_pairs: int = 0
    length_ratios: dict[int, int] = field(default_factory=dict)
    good: int = 0
    bad: int = 0
    swapped: int = 0
    swapped_rows: list[str] = field(default_factory=list)
    contradicting: int = 0
    contradicting_rows: list[str] = field(default_factory=list)

    def merge(self, later: EncodeReport) -> None:
        """Adds what happened behind this."""
        for name in _ADDED:
            setattr(self, name, getattr(self, name) + getattr(later, name))
        self.longest = max(self.longest, later.longest)
        self.max_length = later.max_length
        for mine, other in (
            (self.special_tokens, later.special_tokens),
            (self.not_in_prompt, later.not_in_prompt),
        ):
            for key, count in other.items():
                mine[key] = mine.get(key, 0) + count
        for ratio, pairs in later.length_ratios.items():
            self.length_ratios[ratio] = self.length_ratios.get(ratio, 0) + pairs

    def merge_source(self, later: EncodeReport) -> None:
        """Adds the whole report of another source of the same run."""
        self.merge(later)
        self.left_out += later.left_out
        self.left_out_reasons = self.left_out_reasons + later.left_out_reasons
        self.vocabulary = self.vocabulary.with_rows_of(later.vocabulary)
        self.system = self.system if self.system == later.system else None
        self.swapped += later.swapped
        self.swapped_rows = self.swapped_rows + later.swapped_rows
        self.contradicting += later.contradicting
        self.contradicting_rows = self.contradicting_rows + later.contradicting_rows

    @property
    def characters_per_token(self) -> float:
        """Characters of label text per label token."""
        return self.characters / max(1, self.label_tokens)

    @property
    def length_ratio(self) -> float:
        """The median of the lengths of chosen answers in lengths of the rejected ones; 1 without pairs."""
        ratios = sorted(self.length_ratios.items())
        half, seen = sum(self.length_ratios.values()) / 2, 0
        for ratio, pairs in ratios:
            seen += pairs
            if seen >= half:
                return float(2 ** (ratio / RATIO_STEPS))
        return 1.0

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        fit = round(self.characters_per_token * self.max_length)
        lines = [
            localized(
                f"{self.rows:,} 行、{self.tokens:,} トークン（学習対象 {self.label_tokens:,} トークン、1 トークン約 "
                f"{self.characters_per_token:.2f} 文字、最長 {self.longest}）",
                f"{self.rows:,} rows, {self.tokens:,} tokens ({self.label_tokens:,} label tokens, "
                f"{self.characters_per_token:.2f} characters per token, longest {self.longest})",
            )
        ]
        if self.over_long:
            share = self.lost_label_tokens / max(1, self.label_tokens + self.lost_label_tokens)
            lines.append(
                localized(
                    f"max_length {self.max_length} トークン（約 {fit} 文字）を超える行: {self.over_long}、失われる学習対象トークン {share:.1%}、"
                    f"除いた行 {self.dropped}",
                    f"rows over max_length {self.max_length} tokens (about {fit} characters): {self.over_long}; "
                    f"label tokens lost {share:.1%}; rows dropped {self.dropped}",
                )
            )
        if self.without_end:
            lines.append(
                localized(
                    f"切り詰めで応答の終わりを失う行: {self.without_end}（{self.rows} 行中）。終わり方はこれらの行からは学習されません",
                    f"rows cut before the end of their answer: {self.without_end} of {self.rows}; where to stop is not "
                    "learnt from them",
                )
            )
        if self.special_tokens:
            counts = ", ".join(f"{token} {count}" for token, count in self.special_tokens.items())
            lines.append(
                localized(
                    f"文の中でトークナイザーのトークンとして読まれる文字列: {counts}",
                    f"strings in the text that become tokens of their own: {counts}",
                )
            )
        for key, count in self.not_in_prompt.items():
            lines.append(
                localized(
                    f"チャットテンプレートが使わない {key}: {count} 行（学習にも入りません）",
                    f"{key} is not used by the chat template: {count} rows (it is not trained either)",
                )
            )
        if self.split_conversations:
            lines.append(
                localized(
                    f"テンプレートが履歴を書き換えるため 1 応答ごとに分けた会話: {self.split_conversations}",
                    "conversations split into one row per answer, because the template rewrites history: "
                    f"{self.split_conversations}",
                )
            )
        lines += self._judged_lines()
        unheld = vocabulary_line(self.vocabulary)
        return [*lines, unheld] if unheld is not None else lines

    def _judged_lines(self) -> list[str]:
        """What is said of pairs of answers and of marked ones."""
        lines = []
        if self.cut_pairs:
            lines.append(
                localized(
                    f"2 つの回答が違いの出る前に切れるため除いた組: {self.cut_pairs}（max_length を上げると使えます）",
                    f"pairs left out, whose answers are cut before they differ: {self.cut_pairs} (raise max_length to use them)",
                )
            )
        for count, rows, ja, en in (
            (
                self.swapped,
                self.swapped_rows,
                "良い回答と悪い回答が入れ替わった行もある組",
                "pairs that stand the other way round in another row",
            ),
            (
                self.contradicting,
                self.contradicting_rows,
                "同じ質問の別の行で、良し悪しが逆になる回答のある行",
                "rows with an answer that another row of the same question judges the other way",
            ),
        ):
            if count:
                where = ", ".join(rows)
                lines.append(localized(f"{ja}: {count}（{where}）", f"{en}: {count} ({where})"))
        if self.length_ratio > LONG_CHOSEN:
            lines.append(
                localized(
                    f"良い回答は悪い回答よりずっと長く（中央値 {self.length_ratio:.1f} 倍）、モデルは長さを学びます。preference.loss: sigmoid_norm か simpo、"
                    "または preference.ld_alpha を使ってください",
                    f"chosen answers are much longer than rejected ones (median {self.length_ratio:.1f} times): the model would "
                    "learn length. Use preference.loss: sigmoid_norm or simpo, or preference.ld_alpha",
                )
            )
        if self.good or self.bad:
            lines.append(
                localized(
                    f"良い回答 {self.good:,}、悪い回答 {self.bad:,}",
                    f"good answers {self.good:,}, bad ones {self.bad:,}",
                )
            )
        if self.good and self.bad and max(self.good, self.bad) > UNBALANCED * min(self.good, self.bad):
            name = "desirable_weight" if self.good < self.bad else "undesirable_weight"
            low, high = sorted(
                (share * self.bad / self.good) if self.good < self.bad else self.good / self.bad / share
                for share in BALANCE
            )
            lines.append(
                localized(
                    f"良い回答と悪い回答の数がかたよっています。preference.{name} を {low:.2g} から {high:.2g} にすると釣り合います（KTO の論文の式 8）",
                    f"good and bad answers are far from balanced: preference.{name} of {low:.2g} to {high:.2g} balances them "
                    "(Eq. 8 of the KTO paper)",
                )
            )
        return lines
