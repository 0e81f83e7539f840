"""Samples to tokens and labels.

Labels come from character offsets of the whole rendered conversation. Parts encoded one by one and joined would train
on token sequences that the model never meets: unigram and BPE tokenizers merge across the boundary
(docs/design/japanese.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, localized
from ..japanese.prompts import render
from ..labels import IGNORED
from .messages import Conversation, PlainText, Sample
from .vocabulary import VocabularyLoss, vocabulary_line

MAX_LOST_SHARE = 0.2
_BATCH, _BATCH_CHARACTERS, _AHEAD = 512, 2**18, 2
_Tokens = tuple[list[int], NDArray[np.int64]]


@dataclass(frozen=True)
class Example:
    """One row of tokens.

    Attributes:
        input_ids: [tokens] int32.
        labels: [tokens] int32, unshifted; -100 where a token is not a label token.
        characters: characters of the text of the label tokens.
        source: where the sample came from.
    """

    input_ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    characters: int = 0
    source: str = ""

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass
class EncodeReport:
    """What happened on the way from samples to tokens."""

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
    over_long_sources: list[str] = field(default_factory=list)
    vocabulary: VocabularyLoss = field(default_factory=VocabularyLoss)

    @property
    def characters_per_token(self) -> float:
        """Characters of label text per label token."""
        return self.characters / max(1, self.label_tokens)

    def lines(self) -> list[str]:
        """The report for the user, in the locale's language."""
        fit = round(self.characters_per_token * self.max_length)
        lines = [
            localized(
                f"{self.rows} 行、{self.tokens} トークン（学習対象トークン {self.label_tokens}、1 トークン約 "
                f"{self.characters_per_token:.2f} 文字、最長 {self.longest}）",
                f"{self.rows} rows, {self.tokens} tokens ({self.label_tokens} with loss, "
                f"{self.characters_per_token:.2f} characters per token, longest {self.longest})",
            )
        ]
        if self.over_long:
            share = self.lost_label_tokens / max(1, self.label_tokens + self.lost_label_tokens)
            lines.append(
                localized(
                    f"max_length {self.max_length} トークン（約 {fit} 文字）を超える行: {self.over_long}、失われる回答トークン {share:.1%}、"
                    f"除いた行 {self.dropped}",
                    f"rows over max_length {self.max_length} tokens (about {fit} characters): {self.over_long}; "
                    f"answer tokens lost {share:.1%}; rows dropped {self.dropped}",
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


@dataclass(frozen=True)
class _Rendered:
    """A text to encode, and the character ranges that carry loss."""

    text: str
    spans: tuple[tuple[int, int], ...]
    source: str
    add_special_tokens: bool
    append_eos: bool


def encode(
    samples: Sequence[Sample],
    tokenizer: Any,
    *,
    max_length: int,
    on_long: str = "truncate",
    loss_on: str = "auto",
) -> tuple[list[Example], EncodeReport]:
    """Tokens and labels of all samples.

    Args:
        samples: conversations and plain texts.
        tokenizer: a transformers tokenizer; conversations need its chat template.
        max_length: most tokens in a row.
        on_long: `truncate` keeps the head, `drop` leaves the row out, `error` refuses, `split` cuts plain texts into
            rows; a row begins with the last token of the one before, so that every token is predicted once.
        loss_on: `auto` (the assistant's turns; all of a plain text), `assistant`, or `all`.

    Returns:
        Examples in the order of the samples, and the report.

    Raises:
        DataError: rows without label tokens, a cut of more than 20 % of the answers, an over-long row with on_long
            `error`, plain texts with loss_on `assistant`.
    """
    report = EncodeReport(max_length=max_length)
    marks = _special_tokens(tokenizer)
    rendered = (item for sample in samples for item in _render(sample, tokenizer, marks, loss_on, report))
    examples: list[Example] = []
    dead: list[str] = []
    count = 0
    for item, ids, loss_mask, ends in _encoded(rendered, tokenizer):
        count += 1
        report.longest = max(report.longest, len(ids))
        if len(ids) > max_length:
            _count_over_long(report, item, on_long, ids, loss_mask, max_length)
            if on_long == "drop":
                continue
        rows = range(0, max(1, len(ids) - 1), max_length - 1) if on_long == "split" else (0,)
        made = [_example(item, ids, loss_mask, ends, slice(start, start + max_length)) for start in rows]
        examples += [example for example in made if (example.labels != IGNORED).any()]
        if not any((example.labels != IGNORED).any() for example in made):
            dead.append(item.source)
    _refuse_dead(dead, count, max_length)
    return examples, _finish(report, examples)


def _example(item: _Rendered, ids: NDArray[Any], loss_mask: NDArray[Any], ends: NDArray[Any], kept: slice) -> Example:
    """The row of a text's tokens `kept`, and the characters of its label tokens."""
    labels = np.where(loss_mask[kept], ids[kept], IGNORED).astype(np.int32)
    labels[:1] = IGNORED  # nothing predicts the first token
    first = int(ends[kept.start]) if kept.start else 0
    last = int(ends[min(len(ids), kept.stop) - 1])
    characters = sum(max(0, min(end, last) - max(start, first)) for start, end in item.spans)
    return Example(ids[kept].astype(np.int32), labels, characters, item.source)


def _count_over_long(
    report: EncodeReport, item: _Rendered, on_long: str, ids: NDArray[Any], loss_mask: NDArray[Any], max_length: int
) -> None:
    if on_long == "error":
        raise DataError(
            f"{item.source} が {len(ids)} トークンで、max_length {max_length} を超えています。max_length を上げるか on_long を "
            "truncate か drop にしてください。",
            f"{item.source} has {len(ids)} tokens, more than max_length {max_length}; raise max_length or set "
            "on_long to truncate or drop.",
        )
    if on_long == "split":
        if not item.add_special_tokens:
            raise DataError(
                f"{item.source} は会話なので on_long=split で分けられません。truncate か drop にしてください。",
                f"{item.source} is a conversation, which on_long=split cannot divide; use truncate or drop.",
            )
        return
    report.over_long += 1
    report.over_long_sources.append(item.source)
    if on_long == "drop":
        report.dropped += 1
    else:
        report.lost_label_tokens += int(loss_mask[max_length:].sum())


def _refuse_dead(dead: list[str], rows: int, max_length: int) -> None:
    if dead:
        where = ", ".join(dead[:5])
        raise DataError(
            f"{rows} 行のうち {len(dead)} 行に、学習対象トークンがありません（{where}）。質問が max_length {max_length} トークンを使い切っています。"
            "max_length を上げるか on_long=drop にしてください。",
            f"{len(dead)} of {rows} rows have no label tokens ({where}): the prompt fills max_length "
            f"{max_length}. Raise max_length or set on_long=drop.",
        )


def _finish(report: EncodeReport, examples: list[Example]) -> EncodeReport:
    report.rows = len(examples)
    report.tokens = sum(map(len, examples))
    report.label_tokens = count_label_tokens(examples)
    report.characters = sum(item.characters for item in examples)
    if not examples:
        raise DataError(
            f"max_length {report.max_length} に収まる行がありません（最長 {report.longest} トークン）。max_length を上げてください。",
            f"no row fits max_length {report.max_length} (the longest has {report.longest} tokens); raise max_length.",
        )
    share = report.lost_label_tokens / max(1, report.label_tokens + report.lost_label_tokens)
    if share > MAX_LOST_SHARE:
        raise DataError(
            f"max_length {report.max_length} では回答トークンの {share:.0%} が切り捨てられます（{report.over_long} 行）。max_length を "
            f"{report.longest} まで上げるか、on_long=drop にしてください。",
            f"max_length {report.max_length} would cut {share:.0%} of the answer tokens ({report.over_long} "
            f"rows); raise it (up to {report.longest}) or set on_long=drop.",
        )
    return report


def _render(
    sample: Sample, tokenizer: Any, marks: tuple[str, ...], loss_on: str, report: EncodeReport
) -> Iterator[_Rendered]:
    if isinstance(sample, PlainText):
        if loss_on == "assistant":
            raise DataError(
                f"{sample.source}: data.loss_on が assistant ですが、ただの文章には応答がありません。auto か all にしてください。",
                f"{sample.source}: data.loss_on is assistant, but plain text has no assistant message; use auto or "
                "all.",
            )
        yield _Rendered(sample.text, ((0, len(sample.text)),), sample.source, True, True)
        return
    messages = sample.as_dicts()
    text = render(tokenizer, messages)
    if loss_on == "all":
        yield _Rendered(text, ((0, len(text)),), sample.source, False, not _ends_turn(text, marks))
        return
    spans = _spans(text, messages, tokenizer, marks)
    if spans is not None:
        end = spans[-1][1]
        yield _Rendered(text[:end], tuple(spans), sample.source, False, not _ends_turn(text[:end], marks))
        return
    report.split_conversations += 1
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            yield _single_turn(sample, messages[: index + 1], tokenizer, marks)


def _single_turn(
    sample: Conversation, messages: list[dict[str, str]], tokenizer: Any, marks: tuple[str, ...]
) -> _Rendered:
    """The last assistant turn of a conversation whose template rewrites earlier turns."""
    prompt = render(tokenizer, messages[:-1], add_generation_prompt=True)
    whole = render(tokenizer, messages)
    if not whole.startswith(prompt):
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), 0)
        raise DataError(
            f"{sample.source}: チャットテンプレートの生成プロンプトが、応答を含む全体の先頭と一致しません（{shared} 文字目から）。model.chat_template "
            "で別のテンプレートを指定してください。",
            f"{sample.source}: the template's generation prompt is not a prefix of the whole conversation (differs "
            "from "
            f"character {shared}); choose another model.chat_template.",
        )
    end = _end_of_turn(whole, len(prompt), len(whole), marks)
    return _Rendered(whole[:end], ((len(prompt), end),), sample.source, False, not _ends_turn(whole[:end], marks))


def _spans(
    text: str, messages: list[dict[str, str]], tokenizer: Any, marks: tuple[str, ...]
) -> list[tuple[int, int]] | None:
    """Character ranges of the assistant's turns with their turn-end token, or None where the template rewrites
    history.
    """
    spans = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], add_generation_prompt=True)
        upto = text if index == len(messages) - 1 else render(tokenizer, messages[: index + 1])
        if not (text.startswith(prompt) and text.startswith(upto) and len(upto) > len(prompt)):
            return None
        spans.append((len(prompt), _end_of_turn(text, len(prompt), len(upto), marks)))
    return spans


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """What can end a turn; asked once for all rows, the answer takes as long as a row."""
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return tuple({*tokenizer.all_special_tokens, *added} - {""})


def _ends_turn(text: str, marks: tuple[str, ...]) -> bool:
    return text.rstrip().endswith(marks)


def _end_of_turn(text: str, start: int, stop: int, marks: tuple[str, ...]) -> int:
    """Where a turn's loss ends: behind its turn-end token, before the line end that some templates print after it."""
    stripped = text[start:stop].rstrip()
    return start + len(stripped) if stripped.endswith(marks) else stop


def _encoded(
    rendered: Iterable[_Rendered], tokenizer: Any
) -> Iterator[tuple[_Rendered, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    """(text, ids [tokens], label-token flags [tokens], end of each token in characters [tokens]) of every text, in
    order.

    A batch is segmented without Python's lock, by as many threads as the tokenizer takes, while this thread renders the
    next one and labels the one before; few batches are in memory at a time.
    """
    with ThreadPoolExecutor(max_workers=1) as worker:
        waiting: deque[tuple[list[_Rendered], Future[list[_Tokens]]]] = deque()
        for items in _batches(rendered):
            waiting.append((items, worker.submit(_segment, items, tokenizer)))
            if len(waiting) > _AHEAD:
                yield from _labelled(*waiting.popleft(), tokenizer)
        while waiting:
            yield from _labelled(*waiting.popleft(), tokenizer)


def _labelled(
    items: list[_Rendered], tokens: Future[list[_Tokens]], tokenizer: Any
) -> Iterator[tuple[_Rendered, NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]]:
    for item, (ids, offsets) in zip(items, tokens.result(), strict=True):
        yield item, *_with_eos(item, ids, offsets, tokenizer)


def _batches(rendered: Iterable[_Rendered]) -> Iterator[list[_Rendered]]:
    """Lists of at most _BATCH texts, and of about _BATCH_CHARACTERS."""
    batch: list[_Rendered] = []
    characters = 0
    for item in rendered:
        batch.append(item)
        characters += len(item.text)
        if len(batch) == _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _segment(items: list[_Rendered], tokenizer: Any) -> list[_Tokens]:
    """Ids and offsets [tokens, 2] of every text."""
    if hasattr(tokenizer, "ids_and_offsets"):  # models/sentencepiece_tokenizer.py
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
    item: _Rendered, ids: list[int], offsets: NDArray[np.int64], tokenizer: Any
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Ids, label-token flags and ends; eos is appended where the text has no end of turn."""
    array = np.asarray(ids, dtype=np.int64)
    starts, ends = offsets[:, 0], offsets[:, 1]
    loss_mask = np.zeros(len(array), dtype=bool)
    for start, end in item.spans:
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


def _offsets_by_prefix(item: _Rendered, ids: list[int], tokenizer: Any) -> NDArray[np.int64]:
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


def _prefix_length(item: _Rendered, right: int, ids: list[int], tokenizer: Any) -> int:
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


def max_token_id(examples: Sequence[Example]) -> int:
    """The largest token id, to be compared with the model's embedding rows."""
    return int(np.concatenate([item.input_ids for item in examples]).max())


def count_label_tokens(examples: Sequence[Example]) -> int:
    """Labels that carry loss."""
    return int((np.concatenate([item.labels for item in examples]) != IGNORED).sum()) if examples else 0
