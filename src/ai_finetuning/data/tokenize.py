"""Samples to tokens and labels.

Labels come from character offsets of the whole rendered conversation. Parts encoded one by one and joined would train
on token sequences that the model never meets: unigram and BPE tokenizers merge across the boundary
(docs/design/japanese.md).
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, localized
from ..labels import IGNORED
from .bad_rows import BadRow, BadRows
from .messages import Sample
from .offset_tokenizer import OffsetTokenizer
from .piece_lengths import PieceLengths
from .rendering import Prompts, Rendered, render_sample
from .vocabulary import VocabularyLoss, vocabulary_line

MAX_LOST_SHARE = 0.2
_BATCH, _BATCH_CHARACTERS, _AHEAD = 512, 2**18, 2
_MOST_CHARACTERS = 1 << 22
# Characters of a data set behind which offsets by the lengths of pieces are worth their table.
_MANY = 2**19
# Characters of those on which the offsets by lengths are compared with the tokenizer's own.
_COMPARED = 2**16
_Tokens = tuple[Sequence[int] | NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class Example:
    """One row of tokens.

    Attributes:
        input_ids: [tokens] int32.
        labels: [tokens] int32, unshifted; -100 where a token is not a label token.
        characters: characters that people wrote among the label tokens: no turn ends and other markup.
        source: where the sample came from.
        question: a digest of the question that its row asks; empty where there is none.
        fork: of a pair of answers (prefix, rest of the chosen one, rest of the rejected one), in tokens (data/forks.py).
        mark: 1 where people call the answer good, -1 where they call it bad, 0 where they say nothing.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    characters: int = 0
    source: str = ""
    question: str = ""
    fork: tuple[int, ...] = ()
    mark: int = 0

    def __len__(self) -> int:
        return len(self.input_ids)


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
)


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

    @property
    def characters_per_token(self) -> float:
        """Characters of label text per label token."""
        return self.characters / max(1, self.label_tokens)

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
        unheld = vocabulary_line(self.vocabulary)
        return [*lines, unheld] if unheld is not None else lines


def encode(
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    max_length: int,
    on_long: str = "truncate",
    loss_on: str = "auto",
    bad: BadRows | None = None,
) -> tuple[list[Example], EncodeReport]:
    """Tokens and labels of all samples.

    Args:
        samples: conversations and plain texts.
        tokenizer: a transformers tokenizer; conversations need its chat template.
        max_length: most tokens in a row.
        on_long: `truncate` keeps the head, `drop` leaves the row out, `error` refuses, `split` cuts plain texts into
            rows; a row begins with the last token of the one before, so that every token is predicted once.
        loss_on: `auto` (the assistant's turns; all of a plain text), `assistant`, or `all`.
        bad: receives the bad rows instead; then they are not refused here.

    Returns:
        Examples in the order of the samples, and the report.

    Raises:
        DataError: bad rows (without label tokens, refused by the template, over-long with on_long `error`, special
            tokens in messages, plain texts with loss_on `assistant`), all in one list; a cut of more than 20 % of the
            answers, or of the ends of all of them.
    """
    problems = BadRows() if bad is None else bad
    examples, report = encode_some(samples, Prompts(tokenizer, loss_on), max_length, on_long, problems)
    if bad is None:
        problems.refuse()
    check_encoded(report, problems)
    return examples, report


def encode_some(
    samples: Iterable[Sample],
    prompts: Prompts,
    max_length: int,
    on_long: str,
    bad: BadRows,
    segmenter: Segmenter | None = None,
) -> tuple[list[Example], EncodeReport]:
    """Tokens and labels of some of the samples: (examples, report), without the refusals that go by all of them.

    Args:
        prompts: how they are rendered; what it counts goes into the report.
        samples, max_length, on_long, bad: see encode.
        segmenter: of the tokenizer, where it is kept from one call to the next.
    """
    report = EncodeReport(max_length=max_length)
    examples: list[Example] = []
    segmenter = Segmenter(prompts.tokenizer) if segmenter is None else segmenter
    for item, ids, loss_mask, ends in _encoded(_rendered(samples, prompts, bad, report), segmenter):
        report.longest = max(report.longest, len(ids))
        try:
            examples += _rows(report, item, on_long, ids, loss_mask, ends)
        except BadRow as error:
            bad.add(error, item.source)
    report.rows = len(examples)
    report.tokens = sum(map(len, examples))
    report.label_tokens = count_label_tokens(examples)
    report.characters = sum(item.characters for item in examples)
    report.special_tokens, report.not_in_prompt = prompts.take_counts()
    return examples, report


def _rendered(samples: Iterable[Sample], prompts: Prompts, bad: BadRows, report: EncodeReport) -> Iterator[Rendered]:
    """The texts of all samples; a sample that has none is a bad row."""
    for sample in samples:
        try:
            items = render_sample(sample, prompts)
            _check_characters(items)
        except BadRow as error:
            bad.add(error, sample.source)
            continue
        report.split_conversations += len(items) > 1
        yield from items


def _check_characters(items: Sequence[Rendered]) -> None:
    """Refuses a text that no tokenizer should get in one piece: tokenizers need some 200 bytes for each character."""
    longest = max((len(item.text) for item in items), default=0)
    if longest > _MOST_CHARACTERS:
        raise BadRow(
            f"1 つの行が {longest:,} 文字あります。{_MOST_CHARACTERS:,} 文字以下に分けてください",
            f"a row of {longest:,} characters; divide it into rows of at most {_MOST_CHARACTERS:,}",
        )


def _rows(
    report: EncodeReport,
    item: Rendered,
    on_long: str,
    ids: NDArray[Any],
    loss_mask: NDArray[Any],
    ends: NDArray[Any],
) -> list[Example]:
    """The rows of a text: one, none where it is too long and dropped, or several where it is split.

    Raises:
        BadRow: no label token in the row, or too long with on_long `error`.
    """
    max_length = report.max_length
    too_long = len(ids) > max_length
    if too_long:
        _check_over_long(report, item, on_long, len(ids))
    if too_long and on_long == "drop":
        report.dropped += 1
        return []
    starts = range(0, max(1, len(ids) - 1), max_length - 1) if on_long == "split" else (0,)
    made = [_example(item, ids, loss_mask, ends, slice(start, start + max_length)) for start in starts]
    kept = [example for example in made if (example.labels != IGNORED).any()]
    if not kept:
        raise BadRow(
            f"学習対象トークンがありません。質問が max_length {max_length} トークンを使い切っています（max_length を上げるか on_long=drop）",
            f"no label tokens: the prompt fills max_length {max_length} (raise max_length or set on_long=drop)",
        )
    if too_long and on_long == "truncate":
        stops = [stop for _, stop in item.spans]
        report.lost_label_tokens += int(loss_mask[max_length:].sum())
        report.without_end += not (loss_mask & np.isin(ends, stops))[:max_length].any()
    return kept


def _example(item: Rendered, ids: NDArray[Any], loss_mask: NDArray[Any], ends: NDArray[Any], kept: slice) -> Example:
    """The row of a text's tokens `kept`, and the characters of its label tokens."""
    labels = np.where(loss_mask[kept], ids[kept], IGNORED).astype(np.int32)
    labels[:1] = IGNORED  # nothing predicts the first token
    first = int(ends[kept.start]) if kept.start else 0
    last = int(ends[min(len(ids), kept.stop) - 1])
    characters = sum(max(0, min(end, last) - max(start, first)) for start, end in item.written)
    return Example(ids[kept].astype(np.int32), labels, characters, item.source)


def _check_over_long(report: EncodeReport, item: Rendered, on_long: str, length: int) -> None:
    """Notes a row that is too long.

    Raises:
        BadRow: it may not be, or cannot be split.
    """
    if on_long == "error":
        raise BadRow(
            f"{length} トークンで、max_length {report.max_length} を超えています（max_length を上げるか on_long を truncate か drop に）",
            f"{length} tokens, more than max_length {report.max_length} (raise max_length or set on_long to truncate or "
            "drop)",
        )
    if on_long == "split":
        if not item.add_special_tokens:
            raise BadRow(
                "会話なので on_long=split で分けられません（truncate か drop に）",
                "a conversation, which on_long=split cannot divide (use truncate or drop)",
            )
        return
    report.over_long += 1


def check_encoded(report: EncodeReport, bad: BadRows) -> None:
    """Refuses what all rows together cannot be.

    Raises:
        DataError: no row, a cut of more than 20 % of the answers, or of the ends of all of them.
    """
    if not report.rows and len(bad):
        bad.refuse()
        raise bad.empty(localized("学習データ", "the data"))
    if not report.rows:
        raise DataError(
            f"max_length {report.max_length} に収まる行がありません（最長 {report.longest} トークン）。max_length を上げてください。",
            f"no row fits max_length {report.max_length} (the longest has {report.longest} tokens); raise max_length.",
        )
    share = report.lost_label_tokens / max(1, report.label_tokens + report.lost_label_tokens)
    if share > MAX_LOST_SHARE:
        raise DataError(
            f"max_length {report.max_length} では学習対象トークンの {share:.0%} が切り捨てられます（{report.over_long} 行）。max_length を "
            f"{report.longest} まで上げるか、on_long=drop にしてください。",
            f"max_length {report.max_length} would cut {share:.0%} of the label tokens ({report.over_long} "
            f"rows); raise it (up to {report.longest}) or set on_long=drop.",
        )
    if report.without_end == report.rows:
        raise DataError(
            f"max_length {report.max_length} では {report.rows} 行すべてが応答の終わりを失い、モデルは終わり方を学べません。max_length を "
            f"{report.longest} まで上げるか、on_long=drop にしてください。",
            f"with max_length {report.max_length} all {report.rows} rows lose the end of their answer, so that the model "
            f"would not learn where to stop; raise it (up to {report.longest}) or set on_long=drop.",
        )


def _encoded(
    rendered: Iterable[Rendered], segmenter: Segmenter
) -> Iterator[tuple[Rendered, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    """(text, ids [tokens], label-token flags [tokens], end of each token in characters [tokens]) of every text, in
    order.

    A batch is segmented without Python's lock, by as many threads as the tokenizer takes, while this thread renders the
    next one and labels the one before; few batches are in memory at a time.
    """
    waiting: deque[tuple[list[Rendered], Future[list[_Tokens]]]] = deque()
    for items in _batches(rendered):
        waiting.append((items, segmenter.worker.submit(segmenter.segment, items)))
        if len(waiting) > _AHEAD:
            yield from _labelled(*waiting.popleft(), segmenter.tokenizer)
    while waiting:
        yield from _labelled(*waiting.popleft(), segmenter.tokenizer)


def _labelled(
    items: list[Rendered], tokens: Future[list[_Tokens]], tokenizer: Any
) -> Iterator[tuple[Rendered, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    for item, (ids, offsets) in zip(items, tokens.result(), strict=True):
        yield item, *_with_eos(item, ids, offsets, tokenizer)


def _batches(rendered: Iterable[Rendered]) -> Iterator[list[Rendered]]:
    """Lists of at most _BATCH texts, and of about _BATCH_CHARACTERS."""
    batch: list[Rendered] = []
    characters = 0
    for item in rendered:
        batch.append(item)
        characters += len(item.text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class Segmenter:
    """Segments texts with one tokenizer. Of many characters the offsets are told by the lengths of pieces, where they are
    known to be the tokenizer's own: on the first texts they are compared.

    Args:
        tokenizer: a transformers tokenizer.
        many: whether many characters are known to come; else those that came are counted.

    Attributes:
        tokenizer: the same.
        worker: one thread for all of it: every new one would take memory of its own, and keep it.
    """

    def __init__(self, tokenizer: Any, *, many: bool = False) -> None:
        self.tokenizer = tokenizer
        self.worker = ThreadPoolExecutor(max_workers=1)
        self._seen = _MANY if many else 0
        self._lengths: PieceLengths | None = None
        self._able = not isinstance(tokenizer, OffsetTokenizer) and bool(getattr(tokenizer, "is_fast", False))

    def segment(self, items: list[Rendered]) -> list[_Tokens]:
        """Ids and offsets [tokens, 2] of every text."""
        if not self._able or self._seen < _MANY:
            self._seen += sum(len(item.text) for item in items)
            return segment(items, self.tokenizer)
        if self._lengths is None:
            lengths = PieceLengths(self.tokenizer)
            behind = np.cumsum([len(item.text) for item in items])
            count = int(np.searchsorted(behind, _COMPARED)) + 1
            obtained = segment(items[:count], self.tokenizer)
            told = [
                lengths.offsets(ids, item.text, special=item.add_special_tokens) if lengths.known else None
                for item, (ids, _) in zip(items[:count], obtained, strict=True)
            ]
            alike = [
                np.array_equal(mine, theirs)
                for mine, (_, theirs) in zip(told, obtained, strict=True)
                if mine is not None
            ]
            # Where most texts are not told, encoding them twice would take longer.
            self._able = all(alike) and 2 * len(alike) >= len(obtained)
            self._lengths = lengths
            return obtained + (self.segment(items[count:]) if items[count:] else [])
        return self._by_lengths(items, self._lengths)

    def _by_lengths(self, items: list[Rendered], lengths: PieceLengths) -> list[_Tokens]:
        self.tokenizer("")  # sets the backend's switches as every call of it does
        obtained: dict[int, _Tokens] = {}
        for special in (False, True):
            places = [place for place, item in enumerate(items) if item.add_special_tokens is special]
            texts = [items[place].text for place in places]
            coded = self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=special)
            for place, text, encoding in zip(places, texts, coded, strict=True):
                ids = _array_of(encoding.ids)
                offsets = lengths.offsets(ids, text, special=special)
                # A rare text has lengths that do not add up.
                obtained[place] = (ids, offsets) if offsets is not None else segment([items[place]], self.tokenizer)[0]
        return [obtained[place] for place in range(len(items))]


def _array_of(ids: list[int]) -> NDArray[np.int64]:
    """[tokens] int64; numpy needs more than twice as long for a list."""
    return np.frombuffer(struct.pack(f"={len(ids)}q", *ids), dtype=np.int64)


def segment(items: list[Rendered], tokenizer: Any) -> list[_Tokens]:
    """Ids and offsets [tokens, 2] of every text."""
    if isinstance(tokenizer, OffsetTokenizer):
        return [tokenizer.ids_and_offsets(item.text, add_special_tokens=item.add_special_tokens) for item in items]
    if not getattr(tokenizer, "is_fast", False):
        coded = [tokenizer(item.text, add_special_tokens=item.add_special_tokens)["input_ids"] for item in items]
        return [(ids, _offsets_by_prefix(item, ids, tokenizer)) for item, ids in zip(items, coded, strict=True)]
    tokenizer("")  # sets the backend's switches (no truncation, no padding, special tokens) as every call of it does
    obtained: dict[int, _Tokens] = {}
    for special in (False, True):
        places = [place for place, item in enumerate(items) if item.add_special_tokens is special]
        texts = [items[place].text for place in places]
        # transformers' call would make lists of lists of all that an encoding holds: three times the work of what is
        # used.
        for place, encoding in zip(
            places, tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=special), strict=True
        ):
            offsets = encoding.offsets
            flat = np.fromiter(chain.from_iterable(offsets), dtype=np.int64, count=2 * len(offsets))
            obtained[place] = (encoding.ids, flat.reshape(-1, 2))
    return [obtained[place] for place in range(len(items))]


def _with_eos(
    item: Rendered, ids: Sequence[int] | NDArray[np.int64], offsets: NDArray[np.int64], tokenizer: Any
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Ids, label-token flags and ends; eos is appended where the text has no end of turn."""
    array = np.asarray(ids, dtype=np.int64)
    starts, ends = offsets[:, 0], offsets[:, 1]
    loss_mask = np.zeros(len(array), dtype=bool)
    for start, end in item.spans:
        if end - start == len(item.text):  # all of it, in fewer passes
            loss_mask |= ends > starts
            continue
        loss_mask |= (starts >= start) & (ends <= end) & (ends > starts)
        # A token that begins in the blank before the answer (a sentencepiece "▁東京") belongs to the answer.
        for index in np.flatnonzero((starts < start) & (ends > start)):
            loss_mask[index] |= not item.text[starts[index] : start].strip()
    eos = tokenizer.eos_token_id
    if item.add_special_tokens and len(array) and starts[0] == ends[0] == 0 and array[-1] != eos:
        loss_mask[0] = False  # the BOS that the tokenizer put in front
    if item.append_eos and eos is not None:
        if len(array) and array[-1] == eos:
            loss_mask[-1] = True
        else:
            array, loss_mask = np.append(array, eos), np.append(loss_mask, True)
            ends = np.append(ends, len(item.text))
    return array, loss_mask, ends


def _offsets_by_prefix(item: Rendered, ids: list[int], tokenizer: Any) -> NDArray[np.int64]:
    """Offsets for tokenizers that give none: tokens of a prefix of the text are a prefix of the text's tokens, or it
    is refused.
    """
    offsets = np.zeros((len(ids), 2), dtype=np.int64)
    marks = sorted({0, len(item.text), *(edge for span in item.spans for edge in span)})
    done = 0
    for left, right in zip(marks, marks[1:], strict=False):
        count = len(ids) if right == len(item.text) else _prefix_length(item, right, ids, tokenizer)
        offsets[done:count] = (left, right)
        done = count
    return offsets


def _prefix_length(item: Rendered, right: int, ids: list[int], tokenizer: Any) -> int:
    prefix = tokenizer(item.text[:right], add_special_tokens=item.add_special_tokens)["input_ids"]
    if prefix and prefix[-1] == tokenizer.eos_token_id and not item.text[:right].endswith(str(tokenizer.eos_token)):
        prefix = prefix[:-1]
    if ids[: len(prefix)] == prefix:
        return len(prefix)
    if ids[: len(prefix) - 1] == prefix[:-1]:
        return len(prefix) - 1  # one token straddles the boundary: it counts to what follows
    raise DataError(
        f"{item.source}: このトークナイザーは文字位置を返さず、質問と回答の境目を確定できません。tokenizer.json のあるモデルを使ってください。",
        f"{item.source}: this tokenizer returns no offsets, so the start of the answer cannot be determined; use a "
        "model "
        "with tokenizer.json.",
    )


def count_label_tokens(examples: Sequence[Example]) -> int:
    """Labels that carry loss."""
    return int((np.concatenate([item.labels for item in examples]) != IGNORED).sum()) if examples else 0
