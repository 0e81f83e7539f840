"""Rows with two answers or a marked one, to comparisons and judged answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..messages import excerpt
from .bad_rows import BadRow
from .columns import listed, plain
from .conversations import SPEAKER_KEYS, history, parse_messages
from .judgements import CHOSEN, REJECTED, better, mark_of, sides_of
from .messages import Comparison, Conversation, Judged, Message
from .row_format import Content, Making, Shape, blank, cell_text

# Whole conversations as one text, as HH-RLHF has them: a speaker's name at the beginning of a line.
_ASKS, _ANSWERS = ("human", "user", "人間", "ユーザー"), ("assistant", "アシスタント")
_SPEAKER = r"({})[ 　]*[:：][ 　]*".format("|".join((*_ASKS, *_ANSWERS)))
_TURNS = tuple(re.compile(before + _SPEAKER, re.IGNORECASE) for before in (r"(?:\A\s*|\n\s*\n)", r"(?:\A\s*|\n)"))


def _unequal_prompts() -> BadRow:
    return BadRow(
        "良い回答と悪い回答の質問が違います", "the two answers are not to the same question: the prompts differ"
    )


def _no_question() -> BadRow:
    return BadRow(
        "質問がありません。質問の列（prompt など）を加えるか、2 つの回答をどちらも会話（messages の形）で書いてください",
        "there is no question: add a column with it (such as prompt), or write both answers as whole conversations",
    )


def comparison(shape: Shape) -> tuple[Comparison | None, set[str], set[str]]:
    """(the two answers, columns used, keys of messages that are not used) of a row; None in place of a tie.

    Raises:
        BadRow: no two answers, no difference, no question or two, a verdict that is not known, what no message can be.
    """
    sides = sides_of(shape)
    if sides is None:
        raise BadRow(
            "比べる回答が 2 つありません（chosen と rejected、または response1・response2 と preference）",
            "there are no two answers to compare (chosen and rejected, or response1, response2 and preference)",
        )
    for names in (CHOSEN, REJECTED):
        several = shape.filled(*names)
        if len(several) > 1 and not {"chosen", "rejected"} <= shape.judged.keys():
            raise BadRow(
                f"列 {listed(several)} のどれを使うか決められません。data.columns={{chosen: 列, rejected: 列}} で指定してください",
                f"columns {listed(several)} could all be the answer; choose with data.columns={{chosen: COLUMN, rejected: "
                "COLUMN}",
            )
    used = {sides.first, sides.second} | ({sides.verdict} if sides.verdict is not None else set())
    verdict = better(shape, sides)
    if not verdict:
        return None, set(shape.values), set()  # left out, whatever its columns say
    prompt, columns, keys = _prompt(shape)
    columns_of = (sides.first, sides.second)[::verdict]
    answers = []
    for column in columns_of:
        answer, unused = _answer(shape.values.get(column), column, prompt)
        answers.append(answer)
        keys |= unused
    prompt, chosen, rejected = _together(prompt, answers[0], answers[1])
    if [_said(item) for item in chosen] == [_said(item) for item in rejected]:
        raise BadRow("2 つの回答に違いがありません", "no difference between the two answers")
    for column, side in zip(columns_of, (chosen, rejected), strict=True):
        if not any(item.learn for item in side if item.role == "assistant"):
            raise BadRow(
                f"{excerpt(column)} に学習する発言がありません（weight や train の指定を確かめてください）",
                f"nothing of {excerpt(column)} is to be learnt (see its weight or train keys)",
            )
    silent = tuple(replace(item, learn=False) if item.role == "assistant" else item for item in prompt)
    return Comparison(silent, tuple(chosen), tuple(rejected)), used | columns, keys


def judged_by(inner: Making) -> Making:
    """Makes a marked answer of a row whose conversation another format makes: only its last answer is judged."""

    def build(shape: Shape) -> tuple[Content, set[str], set[str]]:
        mark = mark_of(shape)
        assert mark is not None
        content, used, keys = inner(shape)
        assert isinstance(content, list)
        asked = max((place for place, item in enumerate(content) if item.role == "user"), default=-1)
        messages = tuple(
            replace(item, learn=False) if item.role == "assistant" and place < asked else item
            for place, item in enumerate(content)
        )
        return Judged(Conversation(messages), mark[0]), used | mark[1], keys

    return build


def _said(item: Message) -> tuple[Any, ...]:
    return (item.role, item.content.strip(), item.input.strip(), list(item.tool_calls), item.reasoning.strip())


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and any(plain(key) in SPEAKER_KEYS for key in value)


def _listed_messages(value: Any) -> list[Any] | None:
    """The messages that a cell holds, also as JSON; None where it is a text."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
        items = value if isinstance(value, list) else [value]
        return items if items and all(map(_is_message, items)) else None
    if isinstance(value, Mapping):
        within = value.get("messages")
        return list(within) if isinstance(within, list | tuple) else [value]
    parts = isinstance(value, list | tuple) and value and all(map(_is_message, value))
    return list(value) if parts else None


def _answer(value: Any, column: str, prompt: Sequence[Message]) -> tuple[list[Message], set[str]]:
    """(messages, keys that are not used) of an answer, or of a whole conversation that ends with it.

    Args:
        prompt: what stands beside it. A text is a conversation only with all that the user says there: an answer may be a
            dialogue itself.
    """
    items = _listed_messages(value)
    if items is not None:
        return parse_messages(items, column)
    text = cell_text(value, column)
    whole = _transcript(text)
    if whole is not None and all(_asks(whole, item.content + item.input) for item in prompt if item.role == "user"):
        return whole, set()
    return [Message("assistant", text)], set()


def _transcript(text: str) -> list[Message] | None:
    """The turns of a text such as "Human: … Assistant: …"; None where it is none. The last one may be empty."""
    for pattern in _TURNS:
        marks = list(pattern.finditer(text))
        if not marks or text[: marks[0].start()].strip() or marks[0].group(1).lower() not in _ASKS:
            continue
        ends = [mark.start() for mark in marks[1:]] + [len(text)]
        turns = [
            Message("user" if mark.group(1).lower() in _ASKS else "assistant", text[mark.end() : end].strip())
            for mark, end in zip(marks, ends, strict=True)
        ]
        roles = [item.role for item in turns]
        if len(turns) > 1 and roles == ["user", "assistant"] * (len(turns) // 2):
            return turns
    return None


def _prompt(shape: Shape) -> tuple[list[Message], set[str], set[str]]:
    """(messages, columns used, keys that are not used) of what both answers answer; no messages where no column has it."""
    roles = shape.roles
    used: set[str] = set()
    messages, keys = _asked(shape, used)
    if messages and not _empty(shape, "history"):
        used.add(roles["history"])
        before, unused = history(shape.values[roles["history"]], roles["history"])
        messages, keys = [*before, *messages], keys | unused
    system = _text(shape, "system", used)
    if system and messages and messages[0].role == "system" and messages[0].content != system:
        raise _unequal_systems(roles["system"])
    if system and not (messages and messages[0].role == "system"):
        messages = [Message("system", system), *messages]
    return messages, used, keys


def _asked(shape: Shape, used: set[str]) -> tuple[list[Message], set[str]]:
    """(messages, keys that are not used) of the question; adds its columns."""
    said = [role for role in ("messages", "instruction", "input", "text") if not _empty(shape, role)]
    if not said:
        return [], set()
    column = shape.roles[said[0]]
    used.add(column)
    if said[0] == "messages":
        messages, keys = parse_messages(shape.values[column], column)
        asked = _text(shape, "instruction", used)
        if asked and not _asks(messages, asked):
            raise _unequal_prompts()
        return messages, keys
    items = _listed_messages(shape.values[column])
    if items is not None:
        return parse_messages(items, column)
    asked = cell_text(shape.values[column], column)
    turns = _transcript(asked)
    if turns is not None and not turns[-1].content:
        return turns[:-1], set()
    return [Message("user", asked, _text(shape, "input", used) if said[0] == "instruction" else "")], set()


def _text(shape: Shape, role: str, used: set[str]) -> str:
    """What stands in the column of a role, which is added; empty where there is none."""
    if role not in shape.roles:
        return ""
    used.add(shape.roles[role])
    return cell_text(shape.values.get(shape.roles[role]), shape.roles[role], required=False)


def _unequal_systems(column: str) -> BadRow:
    return BadRow(
        f"列 {excerpt(column)} と会話の system が違います",
        f"column {excerpt(column)} and the system message of the conversation differ",
    )


def _empty(shape: Shape, role: str) -> bool:
    return role not in shape.roles or blank(shape.values.get(shape.roles[role]))


def _asks(messages: Sequence[Message], text: str) -> bool:
    """Whether a text is among what is said."""
    said: Callable[[str], str] = lambda words: "".join(words.split())  # noqa: E731
    return any(said(text) in (said(item.content), said(item.content + item.input)) for item in messages)


def _together(
    prompt: list[Message], chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """(prompt, chosen, rejected) of answers that may bring their whole conversations.

    Raises:
        BadRow: no question, or two.
    """
    whole = [side[0].role != "assistant" for side in (chosen, rejected)]
    if not any(whole):
        before = _without_answer(prompt, chosen, rejected)
        if not any(item.role == "user" for item in before):
            raise _no_question()
        return before, chosen, rejected
    if whole[0] != whole[1]:  # one brings its conversation: the other is another end of it
        longer, shorter = (chosen, rejected) if whole[0] else (rejected, chosen)
        cut = max(place for place, item in enumerate(longer) if item.role != "assistant") + 1
        _check_prompt(prompt, longer[:cut], [*chosen, *rejected])
        sides = (longer[cut:], shorter) if whole[0] else (shorter, longer[cut:])
        if not longer[cut:]:
            raise BadRow("会話が assistant で終わっていません", "the conversation does not end with the assistant")
        return _with_system(prompt, longer[:cut]), *sides
    most = min(len(chosen), len(rejected)) - 1
    same = next((place for place in range(most) if _said(chosen[place]) != _said(rejected[place])), most)
    rests = chosen[same:], rejected[same:]
    if any(rest[-1].role != "assistant" for rest in rests):
        raise BadRow("会話が assistant で終わっていません", "the conversation does not end with the assistant")
    users = [[_said(item) for item in rest if item.role in ("user", "system")] for rest in rests]
    if users[0] != users[1]:
        raise _unequal_prompts()
    if any(rest[0].role != "assistant" for rest in rests):
        raise _unequal_prompts()
    _check_prompt(prompt, chosen[:same], [*chosen, *rejected])
    return _with_system(prompt, chosen[:same]), *rests


def _without_answer(prompt: list[Message], chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """A prompt without one of the answers at its end.

    Raises:
        BadRow: it ends with another answer.
    """
    if not prompt or prompt[-1].role != "assistant":
        return prompt
    if _said(prompt[-1]) in (_said(chosen[-1]), _said(rejected[-1])):
        return prompt[:-1]
    raise BadRow(
        "質問の会話が assistant で終わっています（2 つの回答のどちらでもありません）",
        "the prompt ends with an answer of the assistant, which is neither of the two",
    )


def _check_prompt(prompt: list[Message], within: list[Message], both: list[Message]) -> None:
    """Refuses a prompt that is not what the conversations of the answers begin with.

    Args:
        both: all that the two conversations say: a prompt may end with one of the answers.
    """
    asked = [item for item in within if item.role == "user"]
    answered = [item for item in both if item.role == "assistant"]
    for item in prompt:
        said = {"user": asked, "assistant": answered}.get(item.role)
        if said is not None and not _asks(said, item.content + item.input):
            raise _unequal_prompts()
    system = next((item for item in prompt if item.role == "system"), None)
    if system is not None and within and within[0].role == "system" and within[0].content != system.content:
        raise _unequal_systems("system")


def _with_system(prompt: list[Message], within: list[Message]) -> list[Message]:
    own = prompt[:1] if prompt and prompt[0].role == "system" else []
    return within if within and within[0].role == "system" else [*own, *within]
