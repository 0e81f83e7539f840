"""Samples to tokens and labels.

Labels come from character offsets of the whole rendered conversation. Parts encoded one by one and joined would train
on token sequences that the model never meets: unigram and BPE tokenizers merge across the boundary
(docs/design/japanese.md).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError, localized
from ..labels import IGNORED
from .bad_rows import BadRow, BadRows
from .cutting import Coded, pair_of, rows_of
from .encode_report import EncodeReport
from .example import Example as Example
from .messages import Sample
from .offset_tokenizer import OffsetTokenizer
from .piece_lengths import MOST_CHARACTERS, PieceLengths
from .rendering import SIDES, Prompts, Rendered, render_sample

MAX_LOST_SHARE = 0.2
_BATCH, _BATCH_CHARACTERS, _AHEAD = 512, 2**18, 2
# Characters of a data set behind which offsets by the lengths of pieces are worth their table.
_MANY = 2**19
# Characters on which the offsets by lengths are compared with the tokenizer's own, and of each text.
_COMPARED, _BEGINNING = 2**15, 2**11
_Tokens = tuple[Sequence[int] | NDArray[np.int32], NDArray[Any]]


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
        samples: conversations and plain texts; comparisons become rows with a fork, judged answers rows with a mark.
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
    first: Coded | None = None  # of two answers the chosen one, until the other follows
    for coded in _encoded(_rendered(samples, prompts, bad, report), segmenter):
        report.longest = max(report.longest, len(coded.ids))
        if coded.item.side == SIDES[0]:
            first = coded
            continue
        try:
            if coded.item.side:
                assert first is not None
                examples += pair_of(report, first, coded, on_long)
            else:
                examples += rows_of(report, coded, on_long)
        except BadRow as error:
            bad.add(error, coded.item.source)
    report.rows = len(examples)
    report.tokens = sum(map(len, examples))
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
        report.split_conversations += len(items) > 1 and not items[0].side
        yield from items


def _check_characters(items: Sequence[Rendered]) -> None:
    """Refuses a text that no tokenizer should get in one piece: tokenizers need some 200 bytes for each character."""
    longest = max((len(item.text) for item in items), default=0)
    if longest > MOST_CHARACTERS:
        raise BadRow(
            f"1 つの行が {longest:,} 文字あります。{MOST_CHARACTERS:,} 文字以下に分けてください",
            f"a row of {longest:,} characters; divide it into rows of at most {MOST_CHARACTERS:,}",
        )


def check_encoded(report: EncodeReport, bad: BadRows) -> None:
    """Refuses what all rows together cannot be.

    Raises:
        DataError: no row, a cut of more than 20 % of the answers, or of the ends of all of them.
    """
    if not report.rows and len(bad):
        bad.refuse()
        raise bad.empty(localized("学習データ", "the data"))
    if not report.rows and report.cut_pairs:
        raise DataError(
            f"max_length {report.max_length} では、どの組も 2 つの回答が違いの出る前に切れます。max_length を {report.longest} まで上げてください。",
            f"with max_length {report.max_length} the answers of every pair are cut before they differ; raise it (up to "
            f"{report.longest}).",
        )
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


def _encoded(rendered: Iterable[Rendered], segmenter: Segmenter) -> Iterator[Coded]:
    """Every text with its tokens, in order.

    A batch is segmented without Python's lock, by as many threads as the tokenizer takes, while this thread renders the
    next one and makes rows of the one before; few batches are in memory at a time.
    """
    waiting: deque[Future[list[Coded]]] = deque()
    for items in _batches(rendered):
        waiting.append(segmenter.worker.submit(segmenter.code, items))
        if len(waiting) > _AHEAD:
            yield from waiting.popleft().result()
    while waiting:
        yield from waiting.popleft().result()


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

    def code(self, items: list[Rendered]) -> list[Coded]:
        """Every text with its tokens. What is made of them here is made while they are in the processor's cache."""
        eos = self.tokenizer.eos_token_id
        return [
            Coded(item, *_with_eos(item, ids, offsets, eos))
            for item, (ids, offsets) in zip(items, self.segment(items), strict=True)
        ]

    def segment(self, items: list[Rendered]) -> list[_Tokens]:
        """Ids and offsets [tokens, 2] of every text."""
        if not self._able or self._seen < _MANY:
            self._seen += sum(len(item.text) for item in items)
            return segment(items, self.tokenizer)
        if self._lengths is None:
            self._lengths = PieceLengths(self.tokenizer)
            self._able = self._lengths.known and self._tells(items, self._lengths)
        return self._by_lengths(items, self._lengths) if self._able else segment(items, self.tokenizer)

    def _tells(self, items: list[Rendered], lengths: PieceLengths) -> bool:
        """Whether the offsets of the first texts' beginnings are the tokenizer's own, and are told for most of them: else
        encoding the others twice would take longer.
        """
        beginnings = [replace(item, text=item.text[:_BEGINNING]) for item in items[: _COMPARED // _BEGINNING]]
        told = [
            None if mine is None else np.array_equal(ids, theirs) and np.array_equal(mine, offsets)
            for (ids, mine), (theirs, offsets) in zip(
                self._told(beginnings, lengths), segment(beginnings, self.tokenizer), strict=True
            )
        ]
        return False not in told and 2 * told.count(None) <= len(told)

    def _by_lengths(self, items: list[Rendered], lengths: PieceLengths) -> list[_Tokens]:
        # A rare text has lengths that do not add up.
        return [
            (ids, offsets) if offsets is not None else segment([item], self.tokenizer)[0]
            for item, (ids, offsets) in zip(items, self._told(items, lengths), strict=True)
        ]

    def _told(
        self, items: list[Rendered], lengths: PieceLengths
    ) -> list[tuple[NDArray[np.int32], NDArray[np.int32] | None]]:
        """Ids of every text, and its offsets where lengths tell them."""
        self.tokenizer("")  # sets the backend's switches as every call of it does
        special = [item.add_special_tokens for item in items]
        coded = lengths.encode(self.tokenizer.backend_tokenizer, [item.text for item in items], special)
        return [
            (ids, lengths.offsets(ids, item.text, special=item.add_special_tokens))
            for item, ids in zip(items, coded, strict=True)
        ]


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
    item: Rendered, ids: Sequence[int] | NDArray[np.int32], offsets: NDArray[Any], eos: int | None
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[Any]]:
    """Ids, label-token flags and ends; eos is appended where the text has no end of turn."""
    count = len(ids)
    ended = count > 0 and bool(ids[-1] == eos)
    longer = item.append_eos and eos is not None and not ended
    array = np.empty(count + longer, dtype=np.int32)
    array[:count] = ids
    flags = np.zeros(count + longer, dtype=bool)
    loss_mask = flags[:count]
    starts, ends = offsets[:, 0], offsets[:, 1]
    for start, end in item.spans:
        if end - start == len(item.text):  # all of it, in fewer passes
            np.greater(ends, starts, out=loss_mask)  # which holds all that the other spans do
            continue
        loss_mask |= (starts >= start) & (ends <= end) & (ends > starts)
        # A token that begins in the blank before the answer (a sentencepiece "▁東京") belongs to the answer.
        for index in np.flatnonzero((starts < start) & (ends > start)):
            loss_mask[index] |= not item.text[starts[index] : start].strip()
    if item.add_special_tokens and count and starts[0] == ends[0] == 0 and not ended:
        loss_mask[0] = False  # the BOS that the tokenizer put in front
    if item.append_eos and eos is not None:
        array[-1], flags[-1] = eos, True
    if longer:
        ends = np.append(ends, ends.dtype.type(len(item.text)))
    return array, flags, ends


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
    return sum(int(np.count_nonzero(item.labels != IGNORED)) for item in examples)
