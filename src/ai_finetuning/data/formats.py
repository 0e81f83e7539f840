"""Rows to samples, found by their columns; no registration."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ConfigError, DataError
from .bad_rows import BadRow
from .messages import Conversation, Message, PlainText, Sample

# Names of columns by role, compared after NFKC, lower case and stripping.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages", "conversations", "conversation"),
    "instruction": (
        "instruction",
        "prompt",
        "question",
        "query",
        "指示",
        "質問",
        "問い",
        "問い合わせ",
        "問い合わせ内容",
        "問合せ",
        "問合せ内容",
        "お問い合わせ内容",
        "入力文",
        "q",
        "user",
    ),
    "input": ("input", "context", "入力", "文脈", "背景"),
    "output": (
        "output",
        "response",
        "answer",
        "completion",
        "応答",
        "回答",
        "返答",
        "回答内容",
        "出力",
        "a",
        "assistant",
    ),
    "system": ("system", "システム", "system_prompt"),
    "text": ("text", "本文", "テキスト"),
}
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
_ROLE_OF = {name: role for role, names in COLUMNS.items() for name in names}


def _plain(name: object) -> str:
    return unicodedata.normalize("NFKC", str(name)).strip().lower()


def map_columns(names: list[str], columns: Mapping[str, str] | None = None) -> dict[str, str]:
    """Role -> column name.

    Args:
        names: the columns of the file.
        columns: roles given by the user, `{"instruction": "本文", "output": "答え"}`; they win over names.

    Raises:
        ConfigError: a role or column in `columns` that does not exist.
        DataError: two columns of one role, or no way to make a sample from the columns.
    """
    roles: dict[str, str] = {}
    for role, column in (columns or {}).items():
        if role not in COLUMNS:
            raise ConfigError(
                f"data.columns のキー {role} はありません。使えるのは {', '.join(COLUMNS)} です。",
                f"data.columns has the key {role}; known roles: {', '.join(COLUMNS)}.",
            )
        if column not in names:
            raise ConfigError(
                f"data.columns.{role} が {column} ですが、その列はありません。列: {', '.join(names)}",
                f"data.columns.{role} is {column}, which is not a column; columns: {', '.join(names)}.",
            )
        roles[role] = column
    chosen_by_hand = set(roles)
    for name in names:
        role = _ROLE_OF.get(_plain(name), "")
        if not role or role in chosen_by_hand or name in roles.values():
            continue
        if role in roles:
            raise _ambiguous(role, roles[role], name, names)
        roles[role] = name
    if columns is None and {"text", "instruction"} <= roles.keys() and "output" not in roles:
        raise _ambiguous("text", roles["text"], roles["instruction"], names)
    if not ({"messages"} <= roles.keys() or {"instruction", "output"} <= roles.keys() or {"text"} <= roles.keys()):
        raise DataError(
            f"列 {', '.join(map(str, names))} から学習データを作れません。指示/出力、質問/回答、instruction/output、messages、text のいずれかにするか、"
            f"data.columns で指定してください（例: data.columns={{instruction: {names[0] if names else '列名'}, output: 列名}}）。",
            f"columns {', '.join(map(str, names))} make no training sample. Use instruction/output, 質問/回答, "
            f"messages or text, or say it with data.columns (for example data.columns={{instruction: "
            f"{names[0] if names else 'NAME'}, output: NAME}}).",
        )
    return roles


def _ambiguous(role: str, first: str, second: str, names: list[str]) -> DataError:
    return DataError(
        f"列 {first} と {second} のどちらを {role} とするか決められません（列: {', '.join(names)}）。data.columns で指定してください。",
        f"columns {first} and {second} both match {role} (columns: {', '.join(names)}); choose one with data.columns.",
    )


def _string(values: Mapping[str, Any], column: str, *, required: bool = True) -> str:
    """A cell's text; numbers are refused, because a file that means text should say text."""
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        if required:
            raise BadRow(f"{column} が空です", f"{column} is empty")
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise BadRow(
            f"{column} が {kind} の {value!r} です（文字列が必要です）",
            f"{column} is {value!r}, a {kind}; it must be a string",
        )
    return value


def _message(item: object) -> Message:
    if not isinstance(item, Mapping):
        raise BadRow(f"メッセージが {type(item).__name__} です", f"a message is a {type(item).__name__}, not an object")
    role = item.get("role", item.get("from"))
    content = item.get("content", item.get("value"))
    if role not in ROLES:
        raise BadRow(
            f"role {role!r} は使えません（system, user, assistant）",
            f"role {role!r} is not known (system, user, assistant)",
        )
    if not isinstance(content, str):
        raise BadRow(f"{role} の content が文字列ではありません", f"the content of {role} is not a string")
    return Message(ROLES[role], content)


def _from_messages(values: Mapping[str, Any], roles: Mapping[str, str]) -> list[Message]:
    items = values.get(roles["messages"])
    if not isinstance(items, list | tuple) or not items:
        raise BadRow(
            f"{roles['messages']} がメッセージの配列ではありません", f"{roles['messages']} is not a list of messages"
        )
    messages: list[Message] = []
    for message in map(_message, items):
        if messages and messages[-1].role == message.role:
            messages[-1] = Message(message.role, messages[-1].content + "\n" + message.content)
        else:
            messages.append(message)
    return messages


def _from_pair(values: Mapping[str, Any], roles: Mapping[str, str]) -> list[Message]:
    question = _string(values, roles["instruction"])
    extra = _string(values, roles["input"], required=False) if "input" in roles else ""
    messages = [
        Message("user", question, extra),
        Message("assistant", _string(values, roles["output"])),
    ]
    system = _string(values, roles["system"], required=False) if "system" in roles else ""
    return [Message("system", system), *messages] if system else messages


_BUILDERS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Any], Mapping[str, str]], list[Message]]], ...] = (
    (frozenset({"messages"}), _from_messages),
    (frozenset({"instruction", "output"}), _from_pair),
)


def to_sample(
    values: Mapping[str, Any], roles: Mapping[str, str], source: str, system_prompt: str | None = None
) -> Sample:
    """One row as a sample.

    Raises:
        BadRow: an empty or wrongly typed cell, an unknown role, a conversation without a user's or an assistant's turn.
    """
    build = next((maker for expected, maker in _BUILDERS if expected <= roles.keys()), None)
    if build is None:
        return PlainText(_string(values, roles["text"]), source)
    return conversation(build(values, roles), source, system_prompt)


def conversation(messages: list[Message], source: str, system_prompt: str | None = None) -> Conversation:
    """A checked conversation: system first if at all, user before assistant, the last turn an assistant's with text."""
    order = [message.role for message in messages]
    if "system" in order[1:]:
        raise BadRow("system は先頭だけに置けます", "only the first message may be a system message")
    turns = [message for message in messages if message.role != "system"]
    if not turns or turns[0].role != "user":
        raise BadRow("会話が user から始まっていません", "the conversation does not begin with the user")
    if turns[-1].role != "assistant":
        raise BadRow("会話が assistant で終わっていません", "the conversation does not end with the assistant")
    empty = next((message.role for message in turns if not message.content.strip()), None)
    if empty is not None:
        raise BadRow(f"{empty} の発言が空です", f"a message of {empty} is empty")
    if system_prompt and order[0] != "system":
        messages = [Message("system", system_prompt), *messages]
    return Conversation(tuple(messages), source)
