"""Rows to samples: a table of formats, each recognised by its columns and trained as what it is, or refused by its name.

The rule of the table: every column of a row is used, or named with the reason, or the row is refused.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from ..config.preference import Objective
from ..messages import EXCERPT, excerpt
from .bad_rows import BadRow
from .columns import COLUMNS, by_plain_name, listed, map_columns, plain
from .comparisons import comparison, judged_by
from .conversations import (
    IGNORE_KEYS,
    LEARN_KEYS,
    MEDIA,
    ROLES,
    SPEAKER_KEYS,
    TEXT_KEYS,
    conversation,
    history,
    parse_messages,
    wants_learning,
)
from .judgements import (
    CHOSEN,
    JUDGEMENTS,
    OPINIONS,
    REJECTED,
    TWO,
    VERDICTS,
    WINNERS,
    is_marked,
    is_pair,
    mark_of,
    refuse_bad_turn,
    sides_by_heading,
    sides_of,
)
from .messages import Comparison, Judged, Message, PlainText, Sample
from .row_format import Built, Format, Shape, blank, cell_text


def _from_messages(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
    column = shape.roles["messages"]
    refuse_bad_turn(shape.values[column])
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
        unused: set[str] = set()
        if "history" in roles:
            used.add(roles["history"])
            before, unused = history(shape.values.get(roles["history"]), roles["history"])
        system = optional("system")
        return [*([Message("system", system)] if system else []), *before, asked, answer], used, unused

    return build


def _from_prompt_and_completion(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
    """TRL's conversational prompt and completion, one of which may be a text: only the completion is learnt."""
    asked, answered = shape.roles["instruction"], shape.roles["output"]
    prompt, unused = _messages_or_text(shape, asked, "user")
    completion, more = _messages_or_text(shape, answered, "assistant")
    if completion[0].role in ("system", "user") and any(item.role == "user" for item in prompt):
        said = [[(item.role, item.content.strip()) for item in part] for part in (prompt, completion[: len(prompt)])]
        if said[0] != said[1]:
            raise BadRow(
                f"{excerpt(answered)} が別の質問から始まっています（{excerpt(asked)} の続きだけにするか、{excerpt(asked)} の全体から始めてください）",
                f"{excerpt(answered)} begins with another question: it has to go on from {excerpt(asked)}, or to begin with "
                "all of it",
            )
        completion = completion[len(prompt) :]
    context = [replace(item, learn=False) if item.role == "assistant" else item for item in prompt]
    return [*context, *completion], {asked, answered}, unused | more


def _messages_or_text(shape: Shape, column: str, speaker: str) -> tuple[list[Message], set[str]]:
    """(messages, keys that are not used) of a cell with messages, or with what one person says."""
    value = shape.values.get(column)
    # An answer may be JSON itself.
    as_json = speaker == "user" or _messages_in(shape.values.get(shape.roles["instruction"]))
    if _messages_in(value, as_json=as_json):
        return parse_messages(value, column)
    return [Message(speaker, cell_text(value, column))], set()


def _from_text(shape: Shape) -> tuple[str, set[str], set[str]]:
    column = shape.roles["text"]
    return cell_text(shape.values.get(column), column), {column}, set()


def _is_conversational(shape: Shape) -> bool:
    if not {"instruction", "output"} <= shape.roles.keys():
        return False
    asked, answered = (shape.values.get(shape.roles[role]) for role in ("instruction", "output"))
    return _messages_in(asked) or _messages_in(answered, as_json=False)


def _messages_in(value: Any, *, as_json: bool = True) -> bool:
    """Whether a cell holds a list of messages, perhaps as JSON."""
    if as_json and isinstance(value, str) and value.lstrip()[:1] == "[":
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False
    first = value[0] if isinstance(value, list | tuple) and value else None
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


_CLASSES = ("label", "labels", "ラベル", "class", "sentiment", "感情", "カテゴリラベル")
_CHOICES = ("choices", "options", "選択肢", "choice0", "choice1", "choice_a", "option_a", "answerkey")
_PASSAGES = ("answers", "paragraphs", "qas")
_SEVERAL = ("responses", "answers", "completions", "outputs", "generations", "candidates")
_NEGATIVES = ("neg", "negative", "negatives", "negative_passages", "anchor")
_TARGETS = ("summary", "要約", "target", "translation", "訳", "訳文", "headline", "見出し", "highlights")


def _is_tree(shape: Shape) -> bool:
    nested = [value for value in shape.values.values() if isinstance(value, Mapping) and "replies" in value]
    return bool(shape.filled("parent_id", "message_tree_id") and shape.filled("message_id", "role")) or bool(nested)


def _is_one_message(shape: Shape) -> bool:
    if not shape.filled(*TEXT_KEYS, "utterance", "message") or {"messages", "output"} & shape.roles.keys():
        return False
    return any(plain(shape.values[name]) in ROLES for name in shape.filled(*SPEAKER_KEYS))


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
        "選好データ（chosen と rejected など、良い回答と悪い回答の組）です。組から学ぶなら objective: preference（Python では PreferenceTrainer）にしてください。片方の列だけを学習するなら "
        "data.columns={instruction: prompt, output: chosen} と指定してください",
        "preference data (pairs of a better and a worse answer, such as chosen and rejected), which is not trained as plain "
        "answers: use objective: preference (PreferenceTrainer in Python); to learn one column of it say data.columns={instruction: prompt, output: chosen}",
        '{"prompt": "首都は？", "chosen": "東京です。", "rejected": "知りません。"}',
        is_pair,
        names=CHOSEN + REJECTED + WINNERS,
    ),
    Format(
        "feedback",
        "良し悪しの印（label など）が付いた回答です。ほかの目的では悪い回答も学習してしまいます。印から学ぶなら objective: kto（Python では PreferenceConfig(loss='kto')）"
        "にするか、良い行だけを残してその列を除いてください",
        "answers marked as good or bad (label and the like), whose bad ones would be learnt under another objective: use "
        "objective: kto (PreferenceConfig(loss='kto') in Python), or keep the good rows only and remove that column",
        '{"prompt": "首都は？", "completion": "知りません。", "label": false}',
        is_marked,
        names=VERDICTS + OPINIONS,
    ),
    Format(
        "tree",
        "発言の木（message_id と parent_id）です。行ごとの会話ではないため、messages の形の会話に直してください",
        "a message tree (message_id and parent_id), not one conversation a row; convert it to messages",
        '{"message_id": "2", "parent_id": "1", "role": "assistant", "text": "東京です。"}',
        _is_tree,
    ),
    Format(
        "message",
        "1 行に 1 つの発言（role と content など）です。会話ごとに 1 行にまとめ、messages の配列にしてください。ただの文章なら data.columns={text: 列} と指定してください",
        "one message a row (role and content and the like); write a conversation in each row, as a list in messages; of plain texts say data.columns={text: COLUMN}",
        '{"role": "user", "content": "首都は？"}',
        _is_one_message,
        names=SPEAKER_KEYS,
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
# Headings that YAML takes as they are, and words among them that it takes for something else.
_PLAIN = re.compile(r"\w(?:[\w ()（）・／/-]*[\w)）])?")
_NO_TEXT = re.compile(r"(?:[\d_.+-]+|true|false|null|yes|no|on|off|y|n|0[xob]\w+|\d.*)", re.IGNORECASE)
# Where the user says that a column is plain text, the other columns have nothing to say about it.
_TEXT_BY_HAND = Format("text", "", "", "", lambda shape: shape.has("text"), _from_text)


_BY_KEY = {item.key: item for item in FORMATS}
_PAIRS = replace(_BY_KEY["preference"], build=comparison)
_MARKED = _BY_KEY["feedback"]
_ANOTHER = {
    "preference": (
        "objective: preference では、1 つの質問に良い回答と悪い回答の組（chosen と rejected）が要ります。このまま学習するなら objective: sft にしてください",
        "objective: preference needs pairs of a better and a worse answer (chosen and rejected); to train these rows use "
        "objective: sft",
    ),
    "kto": (
        "objective: kto では、回答の良し悪しの列（label: true か false）が要ります。このまま学習するなら objective: sft にしてください",
        "objective: kto needs a column that marks answers as good or bad (label: true or false); to train these rows use "
        "objective: sft",
    ),
}


def find_format(
    values: Mapping[str, Any], columns: Mapping[str, str] | None = None, objective: Objective = "sft"
) -> tuple[Format | None, Shape]:
    """(format, shape) of a row; None where no format fits.

    Args:
        values: the row.
        columns: roles given by the user.
        objective: what is learnt from; rows of another one have a format that refuses them.

    Raises:
        DataError: two columns of one role.
    """
    if columns and set(columns) == {"text"}:
        shape = Shape(values, {"text": columns["text"]}, True)
        text = _TEXT_BY_HAND if columns["text"] in values else None
        return (text if objective == "sft" or text is None else _ordinary(text, objective)), shape
    judged = {role: name for role, name in (columns or {}).items() if role in JUDGEMENTS and name in values}
    names = list(values)
    sides = sides_by_heading(tuple(map(str, values)), judged)
    if sides is not None:  # response1 and response2 are two answers to compare, not two columns of one role
        apart = {sides.first, sides.second, sides.verdict} - {*(columns or {}).values()} | {*judged.values()}
        names = [name for name in names if name not in apart]
    elif judged:
        names = [name for name in names if name not in judged.values()]
    shape = Shape(values, {**map_columns(names, columns), **judged}, bool(columns), judged)
    if objective != "sft":
        return _judged_format(shape, objective), shape
    if judged:
        return (_BY_KEY["preference"] if is_pair(shape) else _MARKED), shape
    return next((item for item in _candidates(tuple(values), shape.by_hand) if item.fits(shape)), None), shape


def is_unmarked(obtained: Format, shape: Shape) -> bool:
    """Whether a row of plain answers has a column that may mark them as good or bad, but no such mark in it."""
    plain_answers = obtained.build is not None and obtained.key not in ("preference", "feedback")
    return plain_answers and _MARKED in _candidates(tuple(shape.values), False)


def is_refused_mark(obtained: Format) -> bool:
    """Whether rows of a format are refused since somebody marked their answers as good or bad."""
    return obtained is _MARKED


@functools.lru_cache(maxsize=512)
def _candidates(names: tuple[str, ...], by_hand: bool) -> tuple[Format, ...]:
    """The formats that rows with these columns can be of."""
    own = by_plain_name(names)
    named = (item for item in FORMATS if not item.names or any(name in own for name in item.names))
    return tuple(item for item in named if not (by_hand and item.build is None))


def _judged_format(shape: Shape, objective: Objective) -> Format | None:
    """The format of a row under an objective that compares or judges answers."""
    unusable = next((_BY_KEY[key] for key in ("tokens", "media") if _BY_KEY[key].fits(shape)), None)
    if unusable is not None:
        return unusable
    pair = sides_of(shape) is not None or is_pair(shape)
    if objective == "preference" and pair:
        return _PAIRS
    if pair or (objective == "preference" and is_marked(shape)):
        return _BY_KEY["preference"] if pair else _MARKED
    others = (
        item for item in _candidates(tuple(shape.values), shape.by_hand) if item.key not in ("preference", "feedback")
    )
    found = next((item for item in others if item.fits(shape)), None)
    if found is None or found.build is None:
        return found
    if objective == "kto" and found.key != "text" and _may_be_marked(shape):
        return replace(_MARKED, build=judged_by(found.build))
    return _ordinary(found, objective)


def _may_be_marked(shape: Shape) -> bool:
    try:
        return mark_of(shape) is not None
    except BadRow:  # which the row is refused with when it is built
        return True


def _ordinary(found: Format, objective: Objective) -> Format:
    """The refusal of rows that supervised training learns."""
    ja, en = _ANOTHER[objective]
    return replace(
        found, ja=f"ふつうの学習データ（{found.key}）です。{ja}", en=f"plain data ({found.key}); {en}", build=None
    )


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
    if content is None:
        return Built(None, frozenset(used), frozenset(keys), tied=True)
    tools: list[Any] = []
    if "tools" in shape.roles:
        used.add(shape.roles["tools"])
        tools = _tools(values.get(shape.roles["tools"]), shape.roles["tools"])
    if isinstance(content, Comparison):
        first, second = (conversation(side.messages, source, system_prompt, tools).messages for side in content.sides)
        prompt = first[: len(first) - len(content.chosen)]
        sample: Sample = Comparison(prompt, content.chosen, content.rejected, source, tuple(tools))
        assert second[: len(prompt)] == prompt
    elif isinstance(content, Judged):
        sample = Judged(conversation(content.conversation.messages, source, system_prompt, tools), content.good)
    else:
        sample = conversation(content, source, system_prompt, tools)
    return Built(sample, frozenset(used), frozenset(keys))


def _tools(value: Any, column: str) -> list[Any]:
    if blank(value):
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


def _named(column: str, instead: str) -> str:
    """A column as YAML takes it in braces; of one that is as long as a text another word stands there."""
    if len(column) > EXCERPT:
        return instead
    return (
        column
        if _PLAIN.fullmatch(column) and not _NO_TEXT.fullmatch(column)
        else json.dumps(column, ensure_ascii=False)
    )


def no_format(rows: Sequence[Mapping[str, Any]], objective: Objective = "sft") -> tuple[str, str]:
    """Why rows fit no format (Japanese, English), with the likeliest columns as an example that a shell takes as it is."""
    names = list(dict.fromkeys(str(key) for row in rows for key in row))
    if objective != "sft":
        ja, en = _ANOTHER[objective]
        roles = ", ".join((*COLUMNS, *JUDGEMENTS))
        return (
            f"列 {listed(names)} から学習データを作れません。{ja}。列の役割は data.columns で指定できます（役割: {roles}）",
            f"columns {listed(names)} make no training sample: {en}. Roles of columns can be given with data.columns (roles: "
            f"{roles})",
        )
    lengths = {name: sum(len(str(row.get(name) or "")) for row in rows) for name in names}
    own = by_plain_name(tuple(names))
    both = chain.from_iterable(pair for pair in TWO if pair[0] in own and pair[1] in own)
    compared = list(dict.fromkeys(name for heading in (*CHOSEN, *REJECTED, *both) for name in own.get(heading, ())))
    if compared:  # never named as the answer to learn
        roles = "data.columns={instruction: QUESTION, chosen: BETTER, rejected: WORSE}"
        return (
            f"列 {listed(names)} から学習データを作れません。{listed(compared)} は比べる回答の列のようですが、もう一方か、どちらが良いかの列がありません。"
            f"回答の組から学ぶなら objective: preference にして、列を {roles} で指定してください。1 つの列だけを学習するなら data.columns で instruction と "
            "output を指定してください",
            f"columns {listed(names)} make no training sample. {listed(compared)} seem to be answers to compare, but the other one, "
            "or a column that says which is better, is not there. To learn from pairs use objective: preference and name the "
            f"columns with {roles}; to learn one column alone name it as output, and the question as instruction, in data.columns",
        )
    likely = sorted(names, key=lambda name: -lengths[name])[:2]
    question, answer = sorted(likely, key=names.index) if len(likely) == 2 else (likely + ["QUESTION", "ANSWER"])[:2]
    example = shlex.quote(
        f"data.columns={{instruction: {_named(question, 'QUESTION')}, output: {_named(answer, 'ANSWER')}}}"
    )
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
