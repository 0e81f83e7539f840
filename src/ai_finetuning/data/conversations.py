"""Messages in the dialects of other tools, to conversations: roles, parts, tool calls, and what is not to be learnt."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..messages import excerpt
from .bad_rows import BadRow
from .columns import plain, role_of
from .messages import Conversation, Message, Sample, messages_of

# Who speaks, as `plain` writes it.
ROLES = {
    **dict.fromkeys(("system", "developer", "システム"), "system"),
    **dict.fromkeys(("user", "human", "prompter", "ユーザー", "ユーザ", "質問者", "利用者", "お客様", "人間"), "user"),
    **dict.fromkeys(
        ("assistant", "gpt", "bot", "model", "chatgpt", "ai", "chatbot", "アシスタント", "回答者", "オペレーター"),
        "assistant",
    ),
    **dict.fromkeys(("tool", "observation", "function", "ipython", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "function_call"),
}
SPEAKER_KEYS, TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")
# Keys that say whether a message or a row is learnt: OpenAI and LLaMA-Factory, Axolotl, and the same the other way round.
LEARN_KEYS = ("weight", "train", "training", "loss", "learn", "loss_mask", "loss_weight", "do_train", "trainable")
IGNORE_KEYS = ("mask", "masked", "ignore", "ignore_loss", "no_loss")
# Keys of a message that look as if they steered the loss in a dialect that is not known.
_STEERS = re.compile(r"train|loss|learn|mask|weight")
# Keys of rows and messages under which something lies that is no text.
MEDIA = tuple(
    f"{name}{end}" for name in ("image", "audio", "video", "picture", "speech") for end in ("", "s", "_path", "_url")
) + (
    *("画像", "音声", "動画", "写真", "画像ファイル", "音声ファイル", "動画ファイル", "画像パス"),
    *("pixel_values", "img", "img_path", "photo", "photos", "image_file", "audio_file", "image_base64"),
)
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PASSED = ("tool_calls", "function_call", *_REASONING, "name", "tool_call_id")
# A list or dictionary as Python prints it, which a table of pandas is written with.
_PYTHON = re.compile(r"[\[\s]*\{\s*'")
_TEXT_PARTS = ("text", "input_text", "output_text")


def wants_learning(values: Mapping[str, Any]) -> bool | None:
    """What a message or row says about being learnt; None where it says nothing.

    Raises:
        BadRow: a value other than yes or no: shares of a loss are not something that this toolkit trains.
    """
    answer: bool | None = None
    for key, value in values.items():
        name = plain(key)
        if name not in LEARN_KEYS and name not in IGNORE_KEYS or value is None or value == "":
            continue
        word = plain(value)
        if word not in ("true", "false", "1", "0", "1.0", "0.0"):
            raise BadRow(
                f"{excerpt(key)} は 0 と 1、true と false のどれかにしてください",
                f"{excerpt(key)} must be 0 or 1, true or false",
                value,
            )
        obtained = (word in ("true", "1", "1.0")) == (name in LEARN_KEYS)
        answer = obtained if answer is None else answer and obtained
    return answer


def text_of(content: Any, role: str) -> tuple[str, dict[str, Any]]:
    """(text, keys for the template) of a message's content: a string, nothing, or a list of parts.

    Raises:
        BadRow: parts that are no text, or another type.
    """
    role = excerpt(role)
    if content is None:
        return "", {}
    if isinstance(content, str):
        return content, {}
    if isinstance(content, int | float) and not isinstance(content, bool):
        return str(content), {}
    if not isinstance(content, list | tuple):
        raise BadRow(f"{role} の content が文字列ではありません", f"the content of {role} is not a string")
    texts: list[str] = []
    extra: dict[str, Any] = {}
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        value = part.get("text", part.get("value")) if isinstance(part, Mapping) else part
        if kind == "reasoning" and isinstance(value, str):
            extra["reasoning_content"] = value
        elif kind in _TEXT_PARTS and isinstance(value, str):
            texts.append(value)
        else:
            raise BadRow(
                f"{role} の content に文字（text）でない部分があります。画像や音声は学習できません",
                f"the content of {role} has a part that is not text; only text parts can be used, no pictures or sound",
                str(kind),
            )
    return "".join(texts), extra


def _calls(value: Any) -> list[dict[str, Any]]:
    """Tool calls as templates take them, arguments as an object."""
    calls = []
    listed = _parsed(value, "tool_calls") if isinstance(value, str) else value
    if not isinstance(listed, list | tuple):
        raise BadRow("tool_calls がリストではありません", "tool_calls is no list")
    for call in listed:
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise BadRow("tool_calls に関数の name がありません", "a tool call has no function name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _parsed(arguments or "{}", "tool_calls.arguments")
        kept = {key: item for key, item in call.items() if key in ("id", "type")}
        calls.append({"type": "function", **kept, "function": {"name": function["name"], "arguments": arguments}})
    return calls


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        if _PYTHON.match(text):
            raise BadRow(
                f"{name} が JSON ではなく、Python の表示（{{'role': …}}）です。json.dumps で書き出し直してください",
                f"{name} is not JSON but what Python prints ({{'role': ...}}); write it with json.dumps",
                text,
            ) from None
        raise BadRow(
            f"{name} が JSON として読めません（{error}）",
            f"{name} is not valid JSON ({error})",
            text,
        ) from None


def _passed_on(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a message holds for the template besides its text, under one name each."""
    extra: dict[str, Any] = {}
    for name, value in values.items():
        if name in _REASONING:
            extra["reasoning_content"] = str(value)
        elif name in ("tool_calls", "function_call"):
            extra["tool_calls"] = _calls([value] if name == "function_call" else value)
        else:
            extra[name] = value
    return extra


def parse_message(item: object) -> tuple[Message, set[str]]:
    """(message, keys that are not used).

    Raises:
        BadRow: no role that is known, content that is no text.
    """
    if not isinstance(item, Mapping):
        raise BadRow(f"メッセージが {type(item).__name__} です", f"a message is a {type(item).__name__}, not an object")
    keys = {plain(key): key for key in item}
    speaker = next((item[keys[key]] for key in SPEAKER_KEYS if key in keys), None)
    role = ROLES.get(plain(speaker)) if isinstance(speaker, str) else None
    if role is None:
        raise BadRow(
            "使えない role です（system, user, assistant, tool のどれかにしてください）",
            "the role is not known (system, user, assistant, tool)",
            speaker,
        )
    content = next((item[keys[key]] for key in TEXT_KEYS if key in keys), None)
    text, extra = text_of(content, str(speaker))
    if role == "function_call":
        calls = _parsed(text, "function_call")
        return Message("assistant", "", tool_calls=tuple(_calls(calls if isinstance(calls, list) else [calls]))), set()
    extra |= _passed_on({name: item[keys[name]] for name in _PASSED if name in keys and item[keys[name]]})
    if content is None and role != "assistant":
        raise BadRow(f"{speaker} の content がありません", f"a message of {speaker} has no content")
    _check_keys({key: item[own] for key, own in keys.items()}, str(speaker))
    learn = wants_learning(item)
    used = {*_PASSED, *(LEARN_KEYS + IGNORE_KEYS)}
    for names, value in ((SPEAKER_KEYS, speaker), (TEXT_KEYS, content)):
        # A second one that says the same is no loss.
        used |= {key for key in names if key in keys and item[keys[key]] == value}
    unused = {str(key) for key in item if plain(key) not in used and item[key] not in (None, "", [], {})}
    if learn and role != "assistant" and plain(speaker) not in ("tool",):
        unused |= {f"{key} ({role})" for key in item if plain(key) in ("train", "training", "loss", "learn")}
    return (
        Message(
            role,
            text,
            learn=learn is not False,
            tool_calls=tuple(extra.pop("tool_calls", ())),
            reasoning=extra.pop("reasoning_content", ""),
            extra=extra,
        ),
        unused,
    )


def _check_keys(values: Mapping[str, Any], speaker: str) -> None:
    """Refuses keys of a message whose meaning cannot be kept: what is no text, and unknown words about the loss."""
    known = LEARN_KEYS + IGNORE_KEYS
    for key, value in values.items():
        if value in (None, "", [], {}):
            continue
        if key in MEDIA:
            raise BadRow(
                f"{speaker} の発言に {excerpt(key)} があります。使えるのは文字だけで、画像や音声は学習できません",
                f"a message of {speaker} has {excerpt(key)}; only text can be used, no pictures or sound",
            )
        if _STEERS.search(key) and key not in known:
            raise BadRow(
                f"{speaker} の発言のキーが学習するかどうかの指定のようですが、分かりません（使えるのは {', '.join(known)}）",
                f"a key of a message of {speaker} seems to say whether it is learnt, in a way that is not known; known: "
                f"{', '.join(known)}",
                key,
            )


def parse_messages(items: Any, column: str) -> tuple[list[Message], set[str]]:
    """(messages, keys that are not used) of a conversation in any of the known shapes.

    Raises:
        BadRow: no list of messages, or a message that cannot be used.
    """
    column = excerpt(column)
    if isinstance(items, str) and items.lstrip()[:1] in ("[", "{"):
        items = _parsed(items, column)
    if isinstance(items, Mapping) and "messages" in items:
        items = items["messages"]
    if not isinstance(items, list | tuple) or not items:
        raise BadRow(f"{column} がメッセージの配列ではありません", f"{column} is not a list of messages")
    messages: list[Message] = []
    unused: set[str] = set()
    for item in items:
        pair = _turns(item)
        if pair is None:
            message, extra = parse_message(item)
            pair, unused = [message], unused | extra
        for message in pair:
            previous = messages[-1] if messages else None
            if previous is not None and previous.joins(message):
                messages[-1] = Message(previous.role, f"{previous.content}\n{message.content}", learn=previous.learn)
            else:
                messages.append(message)
    return messages, unused


def _turns(item: object) -> list[Message] | None:
    """The turns of `{"human": "...", "assistant": "..."}`; None for a message with a role of its own."""
    if not isinstance(item, Mapping) or any(plain(key) in SPEAKER_KEYS for key in item):
        return None
    obtained: dict[str, Message] = {}
    for key, value in item.items():
        known = role_of(key)
        role = ROLES.get(plain(key)) or {"instruction": "user", "input": "user", "output": "assistant"}.get(
            known[0] if known else ""
        )
        if value in (None, ""):
            continue
        if role is None or role in obtained or role in ("tool", "function_call"):
            return None
        obtained[role] = Message(role, text_of(value, str(key))[0])
    order = [obtained[role] for role in ("system", "user", "assistant") if role in obtained]
    return order or None


def history(value: Any, column: str) -> tuple[list[Message], set[str]]:
    """The earlier turns of an instruction: pairs of question and answer, or messages, with the keys that are not used; all
    answers are learnt.

    Raises:
        BadRow: another shape.
    """
    column = excerpt(column)
    if isinstance(value, str) and value.strip():
        value = _parsed(value, column)
    messages: list[Message] = []
    unused: set[str] = set()
    shape = BadRow(
        f"{column} は [[質問, 回答], ...] の形にしてください", f"{column} must be a list of [question, answer] pairs"
    )
    if value and not isinstance(value, list | tuple | str):
        raise shape
    for pair in value or ():
        if isinstance(pair, Mapping):
            turns, keys = parse_messages([pair], column)
            messages += turns
            unused |= keys
            continue
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise shape
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return messages, unused


def conversation(
    messages: Sequence[Message], source: str, system_prompt: str | None = None, tools: Sequence[Any] = ()
) -> Conversation:
    """A checked conversation: system first if at all, user before assistant, the last turn an assistant's with text.

    Raises:
        BadRow: another order, or a turn without text.
    """
    order = [message.role for message in messages]
    if "system" in order[1:]:
        raise BadRow("system は先頭だけに置けます", "only the first message may be a system message")
    turns = [message for message in messages if message.role != "system"]
    if not turns or turns[0].role != "user":
        raise BadRow("会話が user から始まっていません", "the conversation does not begin with the user")
    if turns[-1].role != "assistant":
        raise BadRow("会話が assistant で終わっていません", "the conversation does not end with the assistant")
    empty = next((item.role for item in turns if not item.content.strip() and not item.tool_calls), None)
    if empty is not None:
        raise BadRow(f"{empty} の発言が空です", f"a message of {empty} is empty")
    if system_prompt and order[0] != "system":
        messages = [Message("system", system_prompt), *messages]
    return Conversation(tuple(messages), source, tuple(tools))


def systems_of(samples: Sequence[Sample]) -> list[str]:
    """The different system texts of the conversations among some samples; empty for one without."""
    return list(
        dict.fromkeys(
            messages[0].content if messages[0].role == "system" else ""
            for messages in map(messages_of, samples)
            if messages
        )
    )


def common_system(samples: Sequence[Sample]) -> str | None:
    """The system text that every conversation of some samples has; None where one has another or none."""
    texts = systems_of(samples)
    return texts[0] or None if len(texts) == 1 else None
