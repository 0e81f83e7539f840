"""Rows to samples: a table of formats, each recognised by its columns and trained as what it is, or refused by its name.

The rule of the table: every column of a row is used, or named with the reason, or the row is refused.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..messages import excerpt
from .bad_rows import BadRow
from .columns import COLUMNS, by_plain_name, listed, map_columns, plain
from .conversations import (
    IGNORE_KEYS,
    LEARN_KEYS,
    MEDIA,
    conversation,
    history,
    parse_messages,
    text_of,
    wants_learning,
)
from .messages import Message, PlainText, Sample

# What stands in a cell where a spreadsheet or a program had no value (compared whole): never a person's text.
NO_VALUES = frozenset(
    ("#N/A", "#REF!", "#VALUE!", "#NAME?", "#DIV/0!", "#NULL!", "#NUM!", "#SPILL!", "#CALC!", "#GETTING_DATA")
    + ("nan", "NaN", "NAN", "<NA>", "NaT", "NULL", "\\N")
)


@dataclass(frozen=True)
class Shape:
    """A row as the formats see it.

    Attributes:
        values: the row.
        roles: role -> column, by headings or as the user said.
        by_hand: whether the user named roles; then no other format is looked for.
    """

    values: Mapping[str, Any]
    roles: Mapping[str, str]
    by_hand: bool = False

    @property
    def _names(self) -> Mapping[str, tuple[str, ...]]:
        return by_plain_name(tuple(self.values))

    def value(self, name: str) -> Any:
        """What stands under a heading, however it is written; None where there is no such column."""
        return next((self.values[key] for key in self._names.get(name, ()) if key in self.values), None)

    def filled(self, *names: str) -> list[str]:
        """Those of the headings under which something stands."""
        own = self._names
        return [key for name in names for key in own.get(name, ()) if not _blank(self.values.get(key))]

    def has(self, *roles: str) -> bool:
        """Whether the row has columns of all roles, and something stands in one of them."""
        if not all(role in self.roles for role in roles):
            return False
        return any(self.values.get(self.roles[role]) is not None for role in roles)


@dataclass(frozen=True)
class Built:
    """What a row became.

    Attributes:
        sample: what is trained; None for a row that says of itself that it is not to be learnt.
        used: columns that are in the sample, or steered it.
        keys: keys of its messages that are not used.
    """

    sample: Sample | None
    used: frozenset[str]
    keys: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        key: its name in reports.
        ja, en: what it is and what becomes of it.
        example: a row, as JSON.
        fits: whether a row is of this format.
        names: headings one of which such a row has; empty where it goes by roles and values.
        build: makes the messages or the text of a row, with the columns that it used; None for a format that is refused.
    """

    key: str
    ja: str
    en: str
    example: str
    fits: Callable[[Shape], bool]
    build: Callable[[Shape], tuple[list[Message] | str, set[str], set[str]]] | None = None
    names: tuple[str, ...] = ()

    def refusal(self) -> BadRow:
        """Why rows of this format are not trained on."""
        return BadRow(self.ja, self.en)


def _blank(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, str) and not value.strip()) or value in ([], {}, ())


def cell_text(value: Any, column: str, *, required: bool = True) -> str:
    """A cell's text; numbers are text, as in CSV.

    Raises:
        BadRow: an empty cell that is needed, a value of another type, or what stands for a missing value.
    """
    column = excerpt(column)
    if _blank(value):
        if required:
            raise BadRow(f"{column} が空です", f"{column} is empty")
        return ""
    if isinstance(value, list | tuple) and all(isinstance(part, Mapping) for part in value):
        value, extra = text_of(value, column)
        if extra:
            raise BadRow(f"{column} に思考（reasoning）の部分があります", f"{column} has a part of type reasoning")
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if type(value).__name__ in ("date", "datetime", "time", "Decimal"):
        value = str(value)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadRow(
            f"{column} が {kind} です（文字列が必要です）",
            f"{column} is a {kind}; it must be a string",
            value,
        )
    if value.strip() in NO_VALUES:
        raise BadRow(
            f"{column} が {value.strip()} です（値がないときやエラーのときの表示で、文ではありません）",
            f"{column} is {value.strip()}, which marks an error or a missing value and is no text",
        )
    return value


def _from_messages(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
    column = shape.roles["messages"]
    messages, unused = parse_messages(shape.values[column], column)
    used = {column}
    if "system" in shape.roles:
        system = cell_text(shape.values.get(shape.roles["system"]), shape.roles["system"], required=False)
        used.add(shape.roles["system"])
        if system and messages[0].role == "system" and messages[0].content != system:
            raise BadRow(
                f"列 {excerpt(shape.roles['system'])} と会話の system が違います",
                f"column {excerpt(shape.roles['system'])} and the system message of the conversation differ",
            )
        if system and messages[0].role != "system":
            messages = [Message("system", system), *messages]
    return messages, used, unused


def _from_pair(question: str) -> Callable[[Shape], tuple[list[Message], set[str], set[str]]]:
    def build(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
        roles, used = shape.roles, {shape.roles[question], shape.roles["output"]}

        def optional(role: str) -> str:
            if role not in roles or role == question:
                return ""
            used.add(roles[role])
            return cell_text(shape.values.get(roles[role]), roles[role], required=False)

        answer = Message("assistant", cell_text(shape.values.get(roles["output"]), roles["output"]))
        asked = Message("user", cell_text(shape.values.get(roles[question]), roles[question]), optional("input"))
        before: list[Message] = []
        if "history" in roles:
            used.add(roles["history"])
            before = history(shape.values.get(roles["history"]), roles["history"])
        system = optional("system")
        return [*([Message("system", system)] if system else []), *before, asked, answer], used, set()

    return build


def _from_prompt_and_completion(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
    """TRL's conversational prompt and completion: only the completion is learnt."""
    columns = [shape.roles["instruction"], shape.roles["output"]]
    prompt, unused = parse_messages(shape.values[columns[0]], columns[0])
    completion, more = parse_messages(shape.values[columns[1]], columns[1])
    context = [
        Message(item.role, item.content, item.input, False, item.tool_calls, item.reasoning, item.extra)
        if item.role == "assistant"
        else item
        for item in prompt
    ]
    return [*context, *completion], set(columns), unused | more


def _from_text(shape: Shape) -> tuple[str, set[str], set[str]]:
    column = shape.roles["text"]
    return cell_text(shape.values.get(column), column), {column}, set()


def _is_yes_or_no(value: Any) -> bool:
    return isinstance(value, bool) or plain(value) in ("true", "false", "0", "1")


def _is_conversational(shape: Shape) -> bool:
    pair = [shape.values.get(shape.roles[role]) for role in ("instruction", "output") if role in shape.roles]
    lists = [value for value in pair if isinstance(value, list | tuple) and value and isinstance(value[0], Mapping)]
    return len(lists) == 2 and all("role" in value[0] or "from" in value[0] for value in lists)


_ANSWERS = ("chosen", "rejected", "chosen_response", "rejected_response", "response_j", "response_k", "preferred")
_WINNERS = ("winner", "preference", "better_response_id")
_VERDICTS = (
    "label",
    "labels",
    "kto_tag",
    "thumbs_up",
    "thumbs",
    "is_correct",
    "correct",
    "is_good",
    "accepted",
    "正誤",
)
# Columns that hold a judgement in words, and the words; ratings in numbers are named as not used (decision 0083).
_OPINIONS = (
    "feedback",
    "vote",
    "reaction",
    "thumbs",
    "rating",
    "verdict",
    "評価",
    "判定",
    "フィードバック",
    "quality_label",
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
    + ("良い", "悪い", "良", "悪", "正解", "不正解", "○", "×", "◯", "高評価", "低評価", "ok", "ng")
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
    + ("👎", "悪い", "悪", "不正解", "×", "低評価", "ng")
)
_CLASSES = ("label", "labels", "ラベル", "class", "sentiment", "感情", "カテゴリラベル")
_CHOICES = ("choices", "options", "選択肢", "choice0", "choice1", "choice_a", "option_a", "answerkey")
_PASSAGES = ("answers", "paragraphs", "qas")
_SEVERAL = ("responses", "answers", "completions", "outputs", "generations", "candidates")
_NEGATIVES = ("neg", "negative", "negatives", "negative_passages", "anchor")
_TARGETS = ("summary", "要約", "target", "translation", "訳", "訳文", "headline", "見出し", "highlights")


def _is_preference(shape: Shape) -> bool:
    winner = shape.filled(*_WINNERS) and shape.filled(
        "response_a", "response_0", "response_1", "answer_a", "conversation_a"
    )
    return len(shape.filled(*_ANSWERS)) >= 2 or bool(shape.filled("rejected")) or bool(winner)


def _is_feedback(shape: Shape) -> bool:
    if not {"messages", "output"} & shape.roles.keys():
        return False
    marked = any(_is_yes_or_no(shape.values[name]) for name in shape.filled(*_VERDICTS))
    return marked or any(plain(shape.values[name]) in _JUDGED for name in shape.filled(*_OPINIONS))


def is_marked_bad(shape: Shape) -> bool:
    """Whether a row of `feedback` says that its answer is a bad one."""
    verdicts = [plain(shape.values[name]) for name in shape.filled(*_VERDICTS)]
    opinions = [plain(shape.values[name]) for name in shape.filled(*_OPINIONS)]
    return any(word in ("false", "0") for word in verdicts) or any(word in _BAD for word in opinions)


def _is_tree(shape: Shape) -> bool:
    nested = [value for value in shape.values.values() if isinstance(value, Mapping) and "replies" in value]
    return bool(shape.filled("parent_id", "message_tree_id") and shape.filled("message_id", "role")) or bool(nested)


def _is_several_answers(shape: Shape) -> bool:
    several = [shape.values[name] for name in shape.filled(*_SEVERAL)]
    return any(isinstance(value, list | tuple) for value in several) and "output" not in shape.roles


def _is_retrieval(shape: Shape) -> bool:
    pairs = (("pos", "neg"), ("positive", "negative"), ("positive_passages", "negative_passages"))
    return any(len(shape.filled(*pair)) == 2 for pair in pairs) or bool(
        shape.filled("anchor") and shape.filled("positive")
    )


def _is_classes(shape: Shape) -> bool:
    sentences = shape.filled("sentence", "sentence1", "premise", "文1")
    text = "text" in shape.roles and "output" not in shape.roles and "messages" not in shape.roles
    return bool((sentences or text) and shape.filled(*_CLASSES, *(("score",) if sentences else ())))


def _is_text_with_target(shape: Shape) -> bool:
    return shape.has("text") and not {"output", "messages"} & shape.roles.keys() and bool(shape.filled(*_TARGETS))


FORMATS: tuple[Format, ...] = (
    Format(
        "tokens",
        "トークン化済みの行（input_ids）です。トークンではなく文のまま渡してください",
        "rows that are tokenized already (input_ids); give the text itself",
        '{"input_ids": [1, 2], "labels": [-100, 2]}',
        lambda shape: bool(shape.filled("input_ids")),
        names=("input_ids",),
    ),
    Format(
        "preference",
        "選好データ（chosen と rejected）です。正解だけの学習データとしては使いません。片方の列だけを学習するなら data.columns={instruction: prompt, output: chosen} "
        "と指定してください",
        "preference data (chosen and rejected), which is not trained as plain answers; to learn one column of it say "
        "data.columns={instruction: prompt, output: chosen}",
        '{"prompt": "首都は？", "chosen": "東京です。", "rejected": "知りません。"}',
        _is_preference,
        names=_ANSWERS + _WINNERS,
    ),
    Format(
        "feedback",
        "良し悪しの印（label など）が付いた回答です。悪い回答も学習してしまうため使いません。良い行だけを残し、その列を除いてください",
        "answers marked as good or bad (label and the like); bad answers would be learnt. Keep the good rows only and "
        "remove that column",
        '{"prompt": "首都は？", "completion": "知りません。", "label": false}',
        _is_feedback,
        names=_VERDICTS + _OPINIONS,
    ),
    Format(
        "tree",
        "発言の木（message_id と parent_id）です。行ごとの会話ではないため、messages の形の会話に直してください",
        "a message tree (message_id and parent_id), not one conversation a row; convert it to messages",
        '{"message_id": "2", "parent_id": "1", "role": "assistant", "text": "東京です。"}',
        _is_tree,
    ),
    Format(
        "media",
        "画像・音声・動画の列があります。文字だけのモデルでは学習できません",
        "a column of pictures, sound or video, which a model of text cannot learn from",
        '{"image": "a.png", "question": "何の写真？", "answer": "富士山です。"}',
        lambda shape: bool(shape.filled(*MEDIA)),
        names=MEDIA,
    ),
    Format(
        "choices",
        "選択肢が別の列にある問題です。選択肢を質問の文に入れ、回答を文にしてください",
        "questions whose choices stand in columns of their own; put the choices into the question and write the answer out",
        '{"question": "首都は？", "choices": ["大阪", "東京"], "answer": 1}',
        lambda shape: len(shape.filled(*_CHOICES)) > 0 and "messages" not in shape.roles,
        names=_CHOICES,
    ),
    Format(
        "extractive",
        "SQuAD 形式（answers に answer_start）です。context を input、answers.text を output の列にしてください",
        "the SQuAD format (answers with answer_start); write context as input and answers.text as output",
        '{"context": "…", "question": "首都は？", "answers": {"text": ["東京"], "answer_start": [5]}}',
        lambda shape: isinstance(shape.value("answers"), Mapping) or bool(shape.filled("paragraphs", "qas")),
        names=_PASSAGES,
    ),
    Format(
        "ranking",
        "1 つの質問に回答がいくつもあります。1 行に 1 つの回答を output の列に書いてください",
        "several answers to one question; write one answer a row, in a column output",
        '{"prompt": "首都は？", "responses": ["東京", "京都"], "scores": [1, 0]}',
        _is_several_answers,
        names=_SEVERAL,
    ),
    Format(
        "retrieval",
        "検索・埋め込み用の組（positive と negative）です。回答の学習データではありません",
        "pairs for retrieval or embeddings (positive and negative), no answers to learn",
        '{"query": "首都", "pos": ["東京は…"], "neg": ["大阪は…"]}',
        _is_retrieval,
        names=_NEGATIVES,
    ),
    Format(
        "labels",
        "文とラベルの組（分類）です。ラベルを答えとして学習するなら data.columns={instruction: 文の列, output: ラベルの列} と指定してください",
        "texts with a label (classification); to learn the label as the answer say data.columns={instruction: TEXT, "
        "output: LABEL}",
        '{"text": "良い店でした", "label": 1}',
        _is_classes,
        names=(*_CLASSES, "score"),
    ),
    Format(
        "word labels",
        "単語ごとのタグ（tokens と *_tags）です。回答の学習データではありません",
        "words with tags (tokens and *_tags), no answers to learn",
        '{"tokens": ["東京", "に"], "ner_tags": [1, 0]}',
        lambda shape: (
            isinstance(shape.value("tokens"), list | tuple)
            and any(plain(key).endswith(("_tags", "labels")) for key in shape.values)
        ),
        names=("tokens",),
    ),
    Format(
        "translation",
        "翻訳の組です。原文を instruction、訳文を output の列にしてください",
        "pairs of translations; write the original as instruction and the translation as output",
        '{"translation": {"en": "Hello", "ja": "こんにちは"}}',
        lambda shape: isinstance(shape.value("translation"), Mapping),
        names=("translation",),
    ),
    Format(
        "messages",
        "会話（OpenAI、ShareGPT など）。アシスタントの発言を学習します。system の列は先頭に置き、weight: 0 や train: false の発言は学習しません",
        "conversations (OpenAI, ShareGPT and others): the assistant's turns are learnt, but for those with weight: 0 or "
        "train: false; a column system goes first",
        '{"messages": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京です。"}]}',
        lambda shape: shape.has("messages"),
        _from_messages,
    ),
    Format(
        "prompt and completion",
        "TRL の会話形式。completion だけを学習します",
        "TRL's conversational form: only the completion is learnt",
        '{"prompt": [{"role": "user", "content": "首都は？"}], "completion": [{"role": "assistant", "content": "東京です。"}]}',
        _is_conversational,
        _from_prompt_and_completion,
    ),
    Format(
        "question and answer",
        "質問と回答。input は質問に付く材料、history は前のやり取り、system は先頭のシステムメッセージになります",
        "a question and its answer; input is the question's material, history the turns before it, system the system message",
        '{"instruction": "首都は？", "input": "", "output": "東京です。"}',
        lambda shape: shape.has("instruction", "output"),
        _from_pair("instruction"),
    ),
    Format(
        "text and answer",
        "text の列が質問、output の列が回答です（ichikara など）",
        "the column text is the question, the column output its answer (ichikara and others)",
        '{"ID": "1", "text": "首都は？", "output": "東京です。"}',
        lambda shape: shape.has("text", "output") and "input" not in shape.roles,
        _from_pair("text"),
    ),
    Format(
        "input and answer",
        "input の列が質問、output の列が回答です（ELYZA-tasks-100 など）",
        "the column input is the question, the column output its answer (ELYZA-tasks-100 and others)",
        '{"input": "首都は？", "output": "東京です。"}',
        lambda shape: shape.has("input", "output") and "text" not in shape.roles,
        _from_pair("input"),
    ),
    Format(
        "text with target",
        "text と要約・訳などの組です。何を学習するか決められません。data.columns={instruction: text, output: 答えの列} か data.columns={text: text} "
        "と指定してください",
        "a text with its summary, translation or headline: what to learn is not clear. Say data.columns={instruction: "
        "text, output: COLUMN} or data.columns={text: text}",
        '{"text": "長い記事…", "summary": "要約"}',
        _is_text_with_target,
        names=_TARGETS,
    ),
    Format(
        "text",
        "プレーンテキスト。すべてのトークンを学習します",
        "plain text: every token is learnt",
        '{"text": "吾輩は猫である。"}',
        lambda shape: shape.has("text") and not {"instruction", "input", "output"} & shape.roles.keys(),
        _from_text,
    ),
)
# Where the user says that a column is plain text, the other columns have nothing to say about it.
_TEXT_BY_HAND = Format("text", "", "", "", lambda shape: shape.has("text"), _from_text)


def find_format(values: Mapping[str, Any], columns: Mapping[str, str] | None = None) -> tuple[Format | None, Shape]:
    """(format, shape) of a row; None where no format fits.

    Args:
        values: the row.
        columns: roles given by the user.

    Raises:
        DataError: two columns of one role.
    """
    if columns and set(columns) == {"text"}:
        shape = Shape(values, {"text": columns["text"]}, True)
        return (_TEXT_BY_HAND if columns["text"] in values else None), shape
    shape = Shape(values, map_columns(list(values), columns), bool(columns))
    candidates = _candidates(tuple(values), shape.by_hand)
    fitting = (item for item in candidates if item.fits(shape))
    return next(fitting, None), shape


@functools.lru_cache(maxsize=512)
def _candidates(names: tuple[str, ...], by_hand: bool) -> tuple[Format, ...]:
    """The formats that rows with these columns can be of."""
    own = by_plain_name(names)
    named = (item for item in FORMATS if not item.names or any(name in own for name in item.names))
    return tuple(item for item in named if not (by_hand and item.build is None))


def is_heading(names: Sequence[str], columns: Mapping[str, str] | None = None) -> bool:
    """Whether cells can be the headings of a table: a format would fit rows below them, or they are what the user named."""
    if columns:
        return all(column in names for column in columns.values())
    from ..errors import DataError

    try:
        obtained, _ = find_format({name: "…" for name in names if name})
    except DataError:
        return True  # two columns of one role are headings as well
    return obtained is not None


def build(values: Mapping[str, Any], obtained: Format, shape: Shape, source: str, system_prompt: str | None) -> Built:
    """One row as a sample.

    Raises:
        BadRow: a format that is refused, an empty or wrongly typed cell, an unknown role, a conversation out of order.
    """
    if obtained.build is None:
        raise obtained.refusal()
    content, used, keys = obtained.build(shape)
    learn = wants_learning({key: value for key, value in values.items() if plain(key) in LEARN_KEYS + IGNORE_KEYS})
    used |= {key for key in values if plain(key) in LEARN_KEYS + IGNORE_KEYS}
    if learn is False:
        return Built(None, frozenset(used), frozenset(keys))
    if isinstance(content, str):
        return Built(PlainText(content, source), frozenset(used), frozenset(keys))
    tools: list[Any] = []
    if "tools" in shape.roles:
        used.add(shape.roles["tools"])
        tools = _tools(values.get(shape.roles["tools"]), shape.roles["tools"])
    return Built(conversation(content, source, system_prompt, tools), frozenset(used), frozenset(keys))


def _tools(value: Any, column: str) -> list[Any]:
    if _blank(value):
        return []
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRow(
                f"{excerpt(column)} が JSON として読めません（{error}）",
                f"{excerpt(column)} is not valid JSON ({error})",
                value,
            ) from None
    return list(value) if isinstance(value, list | tuple) else [value]


def no_format(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Why rows fit no format (Japanese, English), with the likeliest columns as an example that a shell takes as it is."""
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    lengths = {name: sum(len(str(row.get(name) or "")) for row in rows) for name in names}
    likely = sorted(names, key=lambda name: -lengths[name])[:2]
    question, answer = sorted(likely, key=names.index) if len(likely) == 2 else (likely + ["QUESTION", "ANSWER"])[:2]
    example = f"'data.columns={{instruction: {listed([question])}, output: {listed([answer])}}}'"
    heading = any(len(name) > 20 or name.rstrip().endswith(("。", "？", "?")) for name in names)
    ja = "表に見出しの行がないようです（1 行目が文です）。見出し（例: 質問,回答）を付けてください。" if heading else ""
    en = (
        "The table seems to have no heading row (its first row is text); add one, such as 質問,回答. "
        if heading
        else ""
    )
    roles = ", ".join(COLUMNS)
    return (
        f"列 {listed(names)} から学習データを作れません。{ja}質問/回答、instruction/output、messages、text などの列名にするか、"
        f"data.columns で指定してください（例: {example}、役割: {roles}）。読める形は aift data formats で見られます",
        f"columns {listed(names)} make no training sample. {en}Use headings such as instruction/output, 質問/回答, messages "
        f"or text, or say it with data.columns (for example {example}; roles: {roles}). `aift data formats` lists what can "
        "be read",
    )
