"""Rows of tokens out of texts that are segmented: what is cut, left out or refused of those that are too long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..labels import IGNORED
from .bad_rows import BadRow
from .encode_report import RATIO_STEPS, EncodeReport
from .example import Example
from .forks import forked
from .rendering import Rendered

_IGNORED = np.int32(IGNORED)  # so that labels are made in 32 bits


class Coded(NamedTuple):
    """A text with its tokens.

    Attributes:
        item: the text.
        ids: [tokens] int32.
        loss_mask: [tokens] bool, whether a token is a label token.
        ends: [tokens], where a token ends, in characters.
    """

    item: Rendered
    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    ends: NDArray[Any]


def rows_of(report: EncodeReport, coded: Coded, on_long: str) -> list[Example]:
    """The rows of a text: one, none where it is too long and dropped, or several where it is split.

    Raises:
        BadRow: no label token in the row, or too long with on_long `error`.
    """
    item, ids, loss_mask, ends = coded
    max_length = report.max_length
    too_long = len(ids) > max_length
    if too_long:
        _check_over_long(report, item, on_long, len(ids))
    if too_long and on_long == "drop":
        report.dropped += 1
        return []
    starts = range(0, max(1, len(ids) - 1), max_length - 1) if on_long == "split" else (0,)
    cuts = [slice(start, start + max_length) for start in starts]
    kept, label_tokens = _examples(coded, cuts)
    if not kept:
        raise _no_labels(max_length)
    report.label_tokens += label_tokens
    if too_long and on_long == "truncate":
        report.lost_label_tokens += int(loss_mask[max_length:].sum())
        report.without_end += not _keeps_end(coded, max_length)
    report.good += item.mark > 0
    report.bad += item.mark < 0
    return [replace(example, mark=item.mark) for example in kept] if item.mark else kept


def pair_of(report: EncodeReport, chosen: Coded, rejected: Coded, on_long: str) -> list[Example]:
    """The row of two answers: one, or none where it is too long and dropped, or cut before the answers differ.

    Raises:
        BadRow: no difference, no label token on a side, or too long with on_long `error`.
    """
    max_length, sides = report.max_length, (chosen, rejected)
    if np.array_equal(chosen.ids, rejected.ids):
        raise BadRow(
            "2 つの回答に違いがありません（トークンにすると同じです）",
            "no difference between the two answers: their tokens are equal",
        )
    longest = max(len(side.ids) for side in sides)
    if longest > max_length:
        _check_over_long(report, chosen.item, on_long, longest)
        if on_long == "drop":
            report.dropped += 1
            return []
    made = [_examples(side, [slice(0, max_length)]) for side in sides]
    if not all(examples for examples, _ in made):
        raise _no_labels(max_length)
    ([first], learnt), ([second], others) = made
    if np.array_equal(first.input_ids, second.input_ids):
        report.cut_pairs += 1
        return []
    if longest > max_length:
        report.lost_label_tokens += sum(int(side.loss_mask[max_length:].sum()) for side in sides)
        report.without_end += not all(_keeps_end(side, max_length) for side in sides)
    report.pairs += 1
    ratio = round(RATIO_STEPS * math.log2(learnt / others))
    report.length_ratios[ratio] = report.length_ratios.get(ratio, 0) + 1
    pair = forked(first, second)
    report.label_tokens += int(np.count_nonzero(pair.labels != IGNORED))
    return [pair]


def _keeps_end(coded: Coded, max_length: int) -> bool:
    """Whether the end of a learnt answer is among the first tokens."""
    stops = [stop for _, stop in coded.item.spans]
    return bool((coded.loss_mask & np.isin(coded.ends, stops))[:max_length].any())


def _no_labels(max_length: int) -> BadRow:
    return BadRow(
        f"学習対象トークンがありません。質問が max_length {max_length} トークンを使い切っています（max_length を上げるか on_long=drop）",
        f"no label tokens: the prompt fills max_length {max_length} (raise max_length or set on_long=drop)",
    )


def _examples(coded: Coded, cuts: Sequence[slice]) -> tuple[list[Example], int]:
    """(the rows of a text's tokens in each cut that has a label token, with the characters of these, their label tokens)."""
    item, ids, loss_mask, ends = coded
    all_labels = ids if loss_mask.all() else np.where(loss_mask, ids, _IGNORED)
    made: list[Example] = []
    label_tokens = 0
    for cut in cuts:
        # Nothing predicts the first token.
        learnt = len(ids[cut]) - 1 if all_labels is ids else int(np.count_nonzero(loss_mask[cut][1:]))
        if learnt < 1:
            continue
        label_tokens += learnt
        labels = all_labels[cut].copy()
        labels[:1] = IGNORED
        first = int(ends[cut.start]) if cut.start else 0
        last = int(ends[min(len(ids), cut.stop) - 1])
        characters = sum(max(0, min(end, last) - max(start, first)) for start, end in item.written)
        made.append(Example(ids[cut].copy(), labels, characters, item.source))
    return made, label_tokens


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
