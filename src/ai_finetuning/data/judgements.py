"""What people say of answers: which columns hold two answers to compare, or a mark, and what it means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..messages import excerpt
from .bad_rows import BadRow
from .columns import by_plain_name, listed, plain
from .conversations import ROLES, SPEAKER_KEYS, wants_learning
from .row_format import Shape, blank

# Roles of columns beside those of a conversation, with headings as `plain` writes them.
CHOSEN = (
    *("chosen", "preferred", "winner_response", "chosen_response", "response_j", "preferred_output", "accepted"),
    *(
        "chosen_output",
        "chosen_answer",
        "good_answer",
        "good_response",
        "better",
        "better_answer",
        "better_response",
        "win",
    ),
    *("良い回答", "好ましい応答", "好ましい回答", "採用", "良い回答例", "良い応答", "正しい回答", "適切な回答"),
)
REJECTED = (
    *("rejected", "dispreferred", "loser_response", "rejected_response", "response_k", "non_preferred_output"),
    *(
        "rejected_output",
        "rejected_answer",
        "bad_answer",
        "bad_response",
        "worse",
        "worse_answer",
        "worse_response",
        "lose",
    ),
    *(
        "悪い回答",
        "好ましくない応答",
        "好ましくない回答",
        "不採用",
        "悪い回答例",
        "悪い応答",
        "誤った回答",
        "間違った回答",
    ),
    *("不適切な回答", "ng回答"),
)
# Beside these the other answer is the better one, whatever its heading.
_SURELY_REJECTED = ("rejected", "rejected_response", "rejected_output", "rejected_answer")
# Two answers side by side, which a column of verdicts goes with.
TWO = (
    *(("response1", "response2"), ("response_1", "response_2"), ("response_0", "response_1")),
    *(("response_a", "response_b"), ("answer_a", "answer_b"), ("answer_1", "answer_2"), ("answer_0", "answer_1")),
    *(("output_1", "output_2"), ("completion_a", "completion_b"), ("conversation_a", "conversation_b")),
    *(("回答1", "回答2"), ("応答1", "応答2"), ("回答a", "回答b"), ("応答a", "応答b")),
)
WINNERS = ("winner", "preference", "better_response_id", "勝者", "選好", "優劣")
VERDICTS = (
    *("label", "labels", "kto_tag", "thumbs_up", "thumbs", "is_correct", "correct", "is_good", "accepted", "正誤"),
    *("is_accepted", "approved", "is_approved", "採否", "合否", "可否"),
    "良し悪し",
)
# Of these columns a number is the name of an answer; elsewhere it may be how much better one is, whichever.
_NAMING = ("winner", "better_response_id", "勝者")
JUDGEMENTS: dict[str, tuple[str, ...]] = {
    "chosen": CHOSEN,
    "rejected": REJECTED,
    "label": (*VERDICTS, "評価"),
    "preference": WINNERS,
}
# Columns that hold a judgement in words, and the words; ratings in numbers are named as not used (decision 0083).
OPINIONS = (
    "feedback",
    "vote",
    "reaction",
    "thumbs",
    "rating",
    "verdict",
    "評価",
    "良し悪し",
    "判定",
    "フィードバック",
    *("quality_label", "judge", "judgement", "judgment"),
)
_JUDGED = frozenset(
    (
        "good",
        "bad",
        "up",
        "down",
        "like",
        "dislike",
        "positive",
        "negative",
        "desirable",
        "undesirable",
        "accept",
        "reject",
    )
    + ("accepted", "rejected", "correct", "incorrect", "wrong", "thumbs_up", "thumbs_down", "true", "false", "👍", "👎")
    + (
        "良い",
        "悪い",
        "良",
        "悪",
        "よい",
        "いい",
        "わるい",
        "正解",
        "不正解",
        "正しい",
        "誤り",
        "高評価",
        "低評価",
        "ok",
        "ng",
    )
    + ("適切", "不適切", "採用", "不採用", "合格", "不合格", "可", "不可", "否")
    + ("○", "◯", "〇", "⭕", "×", "✕", "✖", "✗", "✘", "❌")
)
_BAD = frozenset(
    (
        "bad",
        "down",
        "dislike",
        "negative",
        "undesirable",
        "reject",
        "rejected",
        "incorrect",
        "wrong",
        "thumbs_down",
        "false",
    )
    + ("👎", "悪い", "悪", "わるい", "不正解", "誤り", "低評価", "ng", "×", "✕", "✖", "✗", "✘", "❌")
    + ("不適切", "不採用", "不合格", "不可", "否")
)
# What a label beside an answer may as well be the class of.
_CLASSES = frozenset(("positive", "negative", "up", "down", "like", "dislike"))
_YES = ("true", "1", "1.0", "yes", "y", "はい")
_NO = ("false", "0", "0.0", "no", "n", "いいえ")
_TIES = frozenset(
    ("tie", "tie(bothbad)", "bothbad", "both", "draw", "neither", "same", "equal", "none")
    + ("引き分け", "引分", "同等", "同じ", "どちらも", "どちらも良い", "どちらも悪い", "どちらでもない")
)
_LETTERS = (("a", "modela", "assistanta"), ("b", "modelb", "assistantb"))
# What makes a sign another picture of the same: a variation selector, a colour of skin.
_LOOKS = re.compile("[\ufe0e\ufe0f\U0001f3fb-\U0001f3ff]")
_GAPS = re.compile(r"[\s_-]+")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")


@dataclass(frozen=True)
class Sides:
    """Where two answers stand.

    Attributes:
        first, second: their columns.
        verdict: the column that says which is better; None where the headings say that the first one is.
        stated: whether the user said that a positive number speaks for the first.
    """

    first: str
    second: str
    verdict: str | None = None
    stated: bool = False


def _column(known: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """The first column with one of these headings."""
    own = by_plain_name(names)
    return next((own[name][0] for name in known if name in own), None)


@lru_cache(maxsize=512)
def _by_heading(names: tuple[str, ...]) -> Sides | None:
    chosen, rejected = _column(CHOSEN, names), _column(REJECTED, names)
    if chosen is not None and rejected is not None:
        return Sides(chosen, rejected)
    own, verdict = by_plain_name(names), _column(WINNERS, names)
    pair = next((pair for pair in TWO if pair[0] in own and pair[1] in own), None)
    if verdict is None or pair is None:
        return None
    return Sides(own[pair[0]][0], own[pair[1]][0], verdict)


def sides_by_heading(names: tuple[str, ...], judged: Mapping[str, str]) -> Sides | None:
    """Where the two answers of rows with these columns stand; None where there are not two.

    Args:
        judged: the columns of answers and verdicts that the user named.
    """
    if "chosen" in judged and "rejected" in judged:
        first, second = judged["chosen"], judged["rejected"]
        beside = {plain(first), plain(second)} in map(set, TWO)  # whose verdicts count, named or not
        verdict = judged.get("preference", _column(WINNERS, names) if beside else None)
        return Sides(first, second, verdict, True)
    found = _by_heading(names)
    if found is None or not judged:
        return found
    return Sides(
        judged.get("chosen", found.first),
        judged.get("rejected", found.second),
        judged.get("preference", found.verdict),
    )


def sides_of(shape: Shape) -> Sides | None:
    """Where the two answers of a row stand; None where it has not two."""
    return sides_by_heading(tuple(map(str, shape.values)), shape.judged)


def better(shape: Shape, sides: Sides) -> int:
    """Which of two answers is better: 1 the first, -1 the second, 0 neither.

    Raises:
        BadRow: nothing says so, or not in a way that is known.
    """
    if sides.verdict is None:
        return 1
    value, column = shape.values.get(sides.verdict), excerpt(sides.verdict)
    if blank(value):
        raise BadRow(
            f"{column} が空です（どちらの回答が良いか分かりません）",
            f"{column} is empty: nothing says which answer is better",
        )
    word = _GAPS.sub("", plain(value))
    if word in _TIES:
        return 0
    ordered = (plain(sides.first), plain(sides.second)) in TWO
    named = [
        1 if place == 0 else -1
        for place, side in enumerate((sides.first, sides.second))
        if word in _names(side, numbers=plain(sides.verdict) in _NAMING) or (ordered and word in _LETTERS[place])
    ]
    if len(named) == 1:
        return named[0]
    written = plain(value)
    number = float(written) if _NUMBER.fullmatch(written) and not isinstance(value, bool) else None
    # Where a number names an answer, 0 and 1 may be the names of answers that are called 1 and 2 here.
    if number is None or (plain(sides.verdict) in _NAMING and not sides.stated):
        raise BadRow(
            f"{column} の値が分かりません（{excerpt(sides.first)} か {excerpt(sides.second)}、引き分けなら tie にしてください）",
            f"the value of {column} is not known; write {excerpt(sides.first)} or {excerpt(sides.second)}, or tie",
            value,
        )
    if number == 0:
        return 0
    if not sides.stated:
        first, second, verdict = listed([sides.first]), listed([sides.second]), listed([sides.verdict])
        raise BadRow(
            f"{column} の数が正のときに {first} と {second} のどちらが良いのか、決まりがありません。正の数で良いほうを chosen として "
            f"data.columns={{chosen: {second}, rejected: {first}, preference: {verdict}}} のように指定してください",
            f"whether a positive {column} speaks for {first} or for {second} is not told. Name the answer that it speaks for "
            f"as chosen, as in data.columns={{chosen: {second}, rejected: {first}, preference: {verdict}}}",
        )
    return 1 if number > 0 else -1


def winner_of(shape: Shape) -> str:
    """The column of the better answer, where a verdict of the row says which; else empty."""
    sides = sides_of(shape)
    if sides is None or sides.verdict is None:
        return ""
    return {1: sides.first, -1: sides.second}.get(better(shape, sides), "")


@lru_cache(maxsize=512)
def _names(side: str, *, numbers: bool) -> frozenset[str]:
    """What a verdict may call an answer, without blanks."""
    own = _GAPS.sub("", plain(side))
    digit = re.search(r"\d+$", own)
    end = own[-1] if own[-1:] in ("a", "b") else digit.group() if digit is not None else ""
    named = {own, *(f"{word}{end}" for word in ("model", "response", "answer", "assistant") if end)}
    return frozenset(named | ({end} if end and (numbers or not end.isdigit()) else set()))


def is_pair(shape: Shape) -> bool:
    """Whether a row holds answers of which one is said to be better."""
    if {"chosen", "rejected", "preference"} & shape.judged.keys():
        return True
    sides, filled = sides_of(shape), shape.filled(*CHOSEN, *REJECTED)
    # Beside a column of rejected answers the chosen one is a pair's also where the other cell is empty.
    if len(filled) >= (2 if sides is None or sides.verdict is not None else 1) or shape.filled(*_SURELY_REJECTED):
        return True
    return bool(shape.filled(*WINNERS) and shape.filled(*(first for first, _ in TWO)))


def _verdict(value: Any, column: str, *, stated: bool = False) -> bool | None:
    """Whether a value calls an answer good; None where it is no such word.

    Args:
        stated: whether the user said that the column does.
    """
    word, name = _LOOKS.sub("", plain(value)), plain(column)
    # Of a column of opinions a number is a rating.
    if (stated or name in VERDICTS) and word in _YES + _NO:
        return word in _YES
    if not stated and name not in OPINIONS and word in _CLASSES:
        return None
    return word not in _BAD if word in _JUDGED else None


def is_marked(shape: Shape) -> bool:
    """Whether somebody calls the answer of a row good or bad."""
    if not {"messages", "output"} & shape.roles.keys():
        return False
    if "label" in shape.judged:
        return True
    return any(_verdict(shape.values[name], name) is not None for name in shape.filled(*VERDICTS, *OPINIONS))


def refuse_bad_turn(items: Any) -> None:
    """Refuses messages of which somebody called an answer bad: it would be learnt.

    Args:
        items: a conversation as it was read.

    Raises:
        BadRow: with the key that says so.
    """
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except (ValueError, RecursionError):  # which the row is refused with when it is read
            return
    if isinstance(items, Mapping):
        items = items.get("messages")
    for item in items if isinstance(items, list | tuple) else ():
        if not isinstance(item, Mapping) or wants_learning(item) is False:
            continue
        if not any(plain(key) in SPEAKER_KEYS and ROLES.get(plain(said)) == "assistant" for key, said in item.items()):
            continue
        key = next((key for key, value in item.items() if _calls_bad(key, value)), None)
        if key is not None:
            raise BadRow(
                f"{excerpt(key)} が悪い回答とする発言があります。学習しないなら weight: 0 を付け、学習するならこのキーを除いてください",
                f"{excerpt(key)} calls a message a bad answer; give it weight: 0 where it is not to be learnt, or remove this key",
                item[key],
            )


def _calls_bad(key: object, value: Any) -> bool:
    return plain(key) in (*VERDICTS, *OPINIONS) and not blank(value) and _verdict(value, str(key)) is False


def is_marked_bad(shape: Shape) -> bool:
    """Whether a row that `is_marked` says that its answer is a bad one."""
    stated = "label" in shape.judged
    names = [shape.judged["label"]] if stated else shape.filled(*VERDICTS, *OPINIONS)
    return any(_verdict(shape.values.get(name), name, stated=stated) is False for name in names)


# Columns of the scores of a pair's answers.
_SCORES = tuple(
    pair
    for word in ("score", "rating", "reward")
    for pair in ((f"chosen_{word}", f"rejected_{word}"), (f"{word}_chosen", f"{word}_rejected"))
)


def is_scored_against(shape: Shape) -> bool:
    """Whether the answer that a row calls chosen has the lower score of the two."""
    for names in _SCORES:
        columns = [next(iter(shape.filled(name)), None) for name in names]
        try:
            chosen, rejected = (float(str(shape.values[column])) for column in columns if column is not None)
        except ValueError:  # no two, or no numbers
            continue
        return chosen < rejected
    return False


def mark_of(shape: Shape) -> tuple[bool, set[str]] | None:
    """(whether the answer of a row is called good, the columns that say so); None where no column could.

    Raises:
        BadRow: no yes or no, or both.
    """
    own = by_plain_name(tuple(shape.values))
    columns = [key for name in JUDGEMENTS["label"] for key in own.get(name, ())]
    known = [key for name in (*VERDICTS, *OPINIONS) for key in own.get(name, ())]
    stated = "label" in shape.judged
    if stated:
        columns = known = [shape.judged["label"]]
    said = {name: _verdict(shape.values.get(name), name, stated=stated) for name in dict.fromkeys(known)}
    obtained = {name: verdict for name, verdict in said.items() if verdict is not None}
    if len(set(obtained.values())) > 1:
        raise BadRow(
            f"列 {listed(list(obtained))} の良し悪しが食い違っています。data.columns={{label: 列}} で 1 つ選んでください",
            f"columns {listed(list(obtained))} disagree about the answer; choose one with data.columns={{label: COLUMN}}",
        )
    if obtained:
        return next(iter(obtained.values())), set(obtained)
    if not columns:
        return None
    column, value = excerpt(columns[0]), shape.values.get(columns[0])
    if blank(value):
        raise BadRow(
            f"{column} が空です（良い回答なら true、悪い回答なら false にしてください）",
            f"{column} is empty; write true for a good answer and false for a bad one",
        )
    raise BadRow(
        f"{column} は良し悪しではありません（良い回答なら true、悪い回答なら false にしてください）",
        f"{column} is no yes or no; write true for a good answer and false for a bad one",
        value,
    )
