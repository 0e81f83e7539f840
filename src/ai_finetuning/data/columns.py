"""What a column means, by its heading."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from ..errors import ConfigError, DataError
from ..messages import excerpt


def _said_by(whose: tuple[str, ...], what: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{one}_{other}" for one in whose for other in what)


# Headings by role, as `plain` writes them. Where two columns of a row have one role, those of `COLUMNS` go before those of
# `SPEAKERS`, which name persons as often as what they say.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation", "dialog", "dialogue", "chat", "turns", "会話", "対話"),
    "instruction": (
        *("instruction", "prompt", "question", "query", "problem", "request", "q", "user_question", "user_input"),
        *("指示", "質問", "問い", "問", "問題", "設問", "問い合わせ", "問合せ", "問合わせ", "問い合せ", "疑問", "相談"),
        *("命令", "依頼", "プロンプト", "入力文", "指示文", "要望", "意見"),
    ),
    "input": ("input", "context", "入力", "文脈", "背景"),
    "output": (
        *("output", "response", "answer", "completion", "reply", "solution", "a", "model_answer", "expected_output"),
        *(
            "応答",
            "回答",
            "返答",
            "返信",
            "出力",
            "答え",
            "答",
            "解答",
            "正解",
            "模範解答",
            "対応",
            "市の考え方",
            "考え方",
        ),
    ),
    "system": ("system", "システム", "system_prompt", "システムプロンプト"),
    "text": ("text", "本文", "テキスト"),
    "history": ("history", "履歴", "会話履歴"),
    "tools": ("tools", "functions"),
}
# Roles that the user can name beside them, of answers to compare or judge; their headings are in judgements.py.
JUDGED = ("chosen", "rejected", "label", "preference")
SPEAKERS: dict[str, tuple[str, ...]] = {
    "instruction": (
        "user",
        "human",
        "ユーザー",
        "ユーザ",
        "利用者",
        "顧客",
        "お客様",
        "客様",
        "お客様の声",
        "客様の声",
        "件名",
        *("質疑", "照会", "苦情", "用件", "題", "クエリ", "リクエスト", "クエスチョン", "しつもん"),
        *_said_by(("user", "customer", "human"), ("question", "query", "prompt", "input", "request")),
    ),
    "output": (
        *("assistant", "gpt", "bot", "ai", "chatbot", "アシスタント", "担当者", "オペレーター", "内容"),
        *("答弁", "応え", "こたえ", "アンサー", "返事", "レスポンス", "アドバイス", "助言", "見解"),
        *("対処法", "対処方法", "対応方法", "解決策", "解決方法"),
        *_said_by(
            ("assistant", "model", "bot", "chatbot", "ai", "gpt", "chatgpt", "agent", "gold", "ideal", "reference")
            + ("target", "correct", "best", "final"),
            ("answer", "response", "reply", "output", "completion"),
        ),
    ),
}
_ROLE = {name: role for role, names in COLUMNS.items() for name in names}
_SPEAKER = {name: role for role, names in SPEAKERS.items() for name in names}
_BRACKETS = re.compile(r"\([^)]*\)|\[[^\]]*\]|【[^】]*】|〔[^〕]*〕|<[^>]*>")
_MARKS = re.compile(r"[\s「」『』\"'()\[\]【】〔〕<>:.・_*#\u200b\ufeff-]+")
_AFFIXES = (
    re.compile(r"^(?:ご|お|御)"),
    re.compile(r"^(?:faq|よくある|よくあるご|想定)"),
    re.compile(r"の?(?:内容|本文|文章|文|事項|項目|テキスト|例)$"),
    re.compile(r"(?:_ja|_jp|_japanese|_text|_message|_content|_utterance)$"),
    re.compile(r"_?\d+$"),
    re.compile(r"^(?:[qa]|\d+)(?=[^\x00-\x7f])"),
    re.compile(r"(?:※.*|必須|任意)$"),
)
# 利用者の質問 is a question and 市の回答 an answer; of ユーザーの発話 only the speaker tells.
_OF = re.compile(r"^(.+)の(.+)$")
_SAID = frozenset(("発話", "発言", "声", "メッセージ", "コメント", "言葉"))
_BESIDE = re.compile(r"[・/／、]")
# Longer headings are sentences.
_LONGEST = 20
# Characters of a heading with all its remarks. A file's first line may be anything, a text of 50 MB too.
_LONGEST_HEADING = 1000


def plain(name: object) -> str:
    """A heading as it is compared: NFKC, lower case, without blanks at its ends."""
    return _plain(str(name))


# The headings of a file come back with each of its rows.
@functools.lru_cache(maxsize=4096)
def _plain(name: str) -> str:
    return unicodedata.normalize("NFKC", name).strip().lower()


@functools.lru_cache(maxsize=512)
def by_plain_name(names: tuple[object, ...]) -> Mapping[str, tuple[str, ...]]:
    """Columns by their heading as it is compared."""
    obtained: dict[str, tuple[str, ...]] = {}
    for name in names:
        obtained[plain(name)] = (*obtained.get(plain(name), ()), str(name))
    return obtained


def _variants(name: object) -> Iterator[str]:
    """A heading and what is left of it without blanks, brackets and polite or general affixes, the nearest first."""
    seen = [plain(name)]
    seen.append(_MARKS.sub("", _BRACKETS.sub("", seen[0])) or _MARKS.sub("", seen[0]))
    for word in (seen[0], seen[1], *_parts(seen[0])):
        queue = [word]
        while queue:
            yield (current := queue.pop(0))
            queue += [shorter for affix in _AFFIXES if (shorter := affix.sub("", current)) not in (current, "")]


def _parts(name: str) -> Iterator[str]:
    """The part of a compound heading that says what the column is."""
    if len(name) > _LONGEST:
        return
    beside = _BESIDE.split(name)
    if len(beside) > 1:
        # ご意見・ご要望 is one thing in two words; 質問/回答 is two things.
        roles = {known[0] if (known := role_of(part)) else None for part in beside if part}
        if len(roles) == 1:
            yield beside[0]
        return
    owned = _OF.match(name)
    if owned is not None:
        yield owned.group(1) if owned.group(2) in _SAID else owned.group(2)


def role_of(name: object) -> tuple[str, bool] | None:
    """(role, whether the heading names a speaker only) of a heading; None where it has none, as texts have."""
    if len(str(name)) > _LONGEST_HEADING:
        return None
    for variant in _variants(name):
        for table, weak in ((_ROLE, False), (_SPEAKER, True)):
            if variant in table:
                return table[variant], weak
    return None


def map_columns(names: Sequence[str], columns: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Role -> column name.

    Args:
        names: the columns of a row or a table.
        columns: roles given by the user, `{"instruction": "本文", "output": "答え"}`; they win over names.

    Raises:
        DataError: two columns of one role.
    """
    return _mapped(tuple(names), tuple((columns or {}).items()))


@functools.lru_cache(maxsize=512)
def _mapped(names: tuple[str, ...], columns: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    roles = {role: column for role, column in columns if column in names}
    by_hand = set(roles)
    weak: dict[str, list[str]] = {}
    for name in names:
        known = role_of(name) if name not in roles.values() else None
        if known is None or known[0] in by_hand:
            continue
        role, speaker = known
        if speaker:
            weak.setdefault(role, []).append(name)
        elif role in roles:
            raise _ambiguous(role, roles[role], name, names)
        else:
            roles[role] = name
    for role, candidates in weak.items():
        if role in roles:
            continue
        # 内容 is the answer below 件名, and the question beside 回答.
        if len(candidates) > 1:
            raise _ambiguous(role, candidates[0], candidates[1], names)
        roles[role] = candidates[0]
    if "output" in roles and "instruction" in roles and roles["instruction"] in weak.get("instruction", ()):
        rivals = [name for name in weak.get("output", ()) if name != roles["output"]]
        if rivals:
            raise _ambiguous("instruction", roles["instruction"], rivals[0], names)
    return roles


def check_columns(columns: Mapping[str, str] | None, names: Sequence[str]) -> None:
    """Refuses roles and columns that do not exist.

    Raises:
        ConfigError: a role or column in `columns` that does not exist.
    """
    for role, column in (columns or {}).items():
        if role not in (known := (*COLUMNS, *JUDGED)):
            raise ConfigError(
                f"data.columns のキー {role} はありません。使えるのは {', '.join(known)} です。",
                f"data.columns has the key {role}; known roles: {', '.join(known)}.",
            )
        if column not in names:
            raise ConfigError(
                f"data.columns.{role} が {column} ですが、その列はありません。列: {listed(names)}",
                f"data.columns.{role} is {column}, which is not a column; columns: {listed(names)}.",
            )


def listed(names: Sequence[object]) -> str:
    """Names of columns for a message, each cut: what stands for a heading may be a whole answer."""
    short = [excerpt(str(name)) for name in names]
    return ", ".join(short[:20]) + (", …" if len(short) > 20 else "")


def _ambiguous(role: str, first: str, second: str, names: Sequence[str]) -> DataError:
    first, second = excerpt(first), excerpt(second)
    return DataError(
        f"列 {first} と {second} のどちらを {role} とするか決められません（列: {listed(names)}）。data.columns で指定してください。",
        f"columns {first} and {second} both match {role} (columns: {listed(names)}); choose one with data.columns.",
    )
