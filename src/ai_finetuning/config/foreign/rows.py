"""Rows of the tables: what becomes of a key of theirs that says something by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import Reason
from .draft import Draft, Row
from .values import is_off, number, text, truth, whole, word

SPEED = Reason("速度とメモリーだけの設定です", "it changes speed and memory only")
KERNELS = Reason(
    "速い計算の選び方で、学習の内容は同じです。本ツールは自分で選びます",
    "it chooses fast kernels for the same computation; ours are chosen by themselves",
)
CACHE = Reason(
    "前処理とキャッシュの設定で、学習の内容は同じです",
    "it is about preparing and caching data, not about what is learnt",
)
DISPLAY = Reason("表示と記録の設定です", "it is about display and logs")
LOADING = Reason(
    "読み込み方の設定で、モデルは config.json から決まります", "it is about loading; the model's config.json says it"
)
TRACKER = Reason("トラッカーの細部は本ツールでは設定しません", "details of a tracker are not set here")
UPLOAD = Reason("ハブへの送信はしません", "nothing is uploaded to a hub")
LAUNCH = Reason(
    "起動方法の設定です。本ツールは aift train がプロセスを起動します",
    "it is about launching; aift train starts its processes",
)
EVALUATION = Reason("評価の細部で、学習の内容は同じです", "it is a detail of evaluation, not of what is learnt")
PREFERENCE = Reason(
    "選好学習の設定で、教師あり学習では使われません",
    "it belongs to preference methods and is unused in supervised runs",
)
GENERATION = Reason("生成と推論の設定です", "it is about generation and inference")
SAFE = Reason(
    "リポジトリのコードは実行しません。必要なモデルなら、コマンドラインで model.trust_remote_code=true と指定してください",
    "no code of a repository is run; where a model needs it, say model.trust_remote_code=true on the command line",
)
PADDING = Reason(
    "パディングは学習もされず注意も向けられないので、どのトークンでも同じです",
    "padding is neither learnt nor attended to, whichever token it is",
)


def take(path: str, convert: Callable[[object], Any] = text) -> Row:
    """A value that ours has under `path`."""

    def row(draft: Draft, key: str, value: Any) -> None:
        draft.take(key, path, convert(value))

    return row


def take_whole(path: str) -> Row:
    """A whole number that ours has under `path`."""
    return take(path, whole)


def take_number(path: str) -> Row:
    """A number that ours has under `path`."""
    return take(path, number)


def take_truth(path: str) -> Row:
    """A truth value that ours has under `path`."""
    return take(path, truth)


def drop(reason: Reason, *, differs: bool = False) -> Row:
    """A key that a run of ours does without."""

    def row(draft: Draft, key: str, value: Any) -> None:
        draft.drop(key, reason, differs=differs and not is_off(value))

    return row


def refuse(ja: str, en: str) -> Row:
    """A key that a run of ours lacks, where it is used; switched off it is dropped."""

    def row(draft: Draft, key: str, value: Any) -> None:
        if is_off(value):
            draft.drop(key, Reason("使っていません", "it is switched off"))
        else:
            draft.refuse(key, Reason(ja, en))

    return row


def choose(outcomes: Mapping[str, Reason | None], lacking: Reason) -> Row:
    """A word: dropped for a reason, or not (None), else refused."""

    def row(draft: Draft, key: str, value: Any) -> None:
        found = word(value)
        reason = outcomes.get(found)
        if reason is not None:
            draft.drop(key, reason)
        else:
            draft.refuse(key, lacking)

    return row


def only_if(expected: object, same: Reason, lacking: Reason) -> Row:
    """A truth value that ours always has: dropped where it is that, refused where it is not."""

    def row(draft: Draft, key: str, value: Any) -> None:
        if truth(value) is expected:
            draft.drop(key, same)
        else:
            draft.refuse(key, lacking)

    return row


def in_part(draft: Draft, key: str, value: Any) -> None:
    """A key that a Part speaks of; what it leaves unsaid is refused when the conversion ends."""


def as_given(path: str) -> Row:
    """A value that is taken without looking at it."""
    return take(path, lambda value: value)


def rows(row: Row, keys: str) -> dict[str, Row]:
    """One row for several keys (separated by blanks; `*` stands for anything)."""
    return dict.fromkeys(keys.split(), row)
