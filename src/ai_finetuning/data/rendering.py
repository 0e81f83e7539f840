"""Samples to texts: what the model reads, and which characters of it carry loss."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..errors import DataError
from ..japanese.prompts import render
from .bad_rows import BadRow
from .messages import Comparison, Conversation, Judged, Message, PlainText, Sample, words_beside

Span = tuple[int, int]
SIDES = ("chosen", "rejected")
# Characters of a message's first line that are looked for in what a template made of it.
_BEGINNING = 24
_MARKUP = re.compile(r"[<\[（(].*[>\]）)]", re.DOTALL)


@dataclass(frozen=True)
class Rendered:
    """A text to encode.

    Attributes:
        text: what the model reads.
        spans: character ranges that carry loss, with what ends a turn.
        written: those parts of the spans that people wrote, without markup.
        source: where the sample came from.
        add_special_tokens: whether the tokenizer adds its own at the ends.
        append_eos: whether eos ends the row.
        side: of two answers to compare `chosen` or `rejected`; the one follows the other.
        mark: 1 or -1 of an answer that somebody called good or bad.
    """

    text: str
    spans: tuple[Span, ...]
    written: tuple[Span, ...]
    source: str
    add_special_tokens: bool
    append_eos: bool
    side: str = ""
    mark: int = 0


@dataclass(frozen=True)
class Prompts:
    """How samples are rendered for one tokenizer.

    Attributes:
        tokenizer: with a chat template.
        loss_on: `auto`, `assistant` or `all`.
        special_tokens: counts strings in texts that become tokens of their own.
        not_in_prompt: counts rows with keys that the template leaves out.
    """

    tokenizer: Any
    loss_on: str
    special_tokens: dict[str, int] = field(default_factory=dict)
    not_in_prompt: dict[str, int] = field(default_factory=dict)

    @cached_property
    def marks(self) -> tuple[str, ...]:
        """What can end a turn; asked once for all rows, the answer takes as long as a row."""
        added = (token.content for token in self.tokenizer.added_tokens_decoder.values())
        return tuple({*self.tokenizer.all_special_tokens, *added} - {""})

    @cached_property
    def special(self) -> re.Pattern[str] | None:
        """Strings that the tokenizer reads as special tokens wherever they stand."""
        added = self.tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return _any_of(names)

    def special_in(self, words: str) -> tuple[Span, str] | None:
        """Where the tokenizer would read a special token in a text that a person wrote, and which; None where it reads
        characters.

        Some tokenizers bring texts into another form first (`＜/s＞` becomes `</s>`), and some encode the name of a special
        token as the characters that it is written with: the ids tell.
        """
        if not words or self.special is None:
            return None
        for match in self.special.finditer(words):
            if self._reads(words, match.group()):
                return match.span(), match.group()
        folded = unicodedata.normalize("NFKC", words)
        for match in self.special.finditer(folded) if folded != words else ():
            if self._reads(words, match.group()):
                return (0, len(words)), match.group()
        return None

    def _reads(self, words: str, token: str) -> bool:
        """Whether a token that a text names is among its ids."""
        number = self.tokenizer.convert_tokens_to_ids(token)
        return number in self.tokenizer(words, add_special_tokens=False)["input_ids"]

    @cached_property
    def own_markup(self) -> re.Pattern[str] | None:
        """Added tokens that are not special, such as <think>: markup that a model knows, not runs of blanks."""
        added = self.tokenizer.added_tokens_decoder.values()
        return _any_of({token.content for token in added if not token.special and _MARKUP.fullmatch(token.content)})

    def text(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any], *, prompt: bool = False) -> str:
        """Messages as the model reads them.

        Raises:
            BadRow: the template refuses them.
        """
        try:
            return render(self.tokenizer, messages, tools=tools, add_generation_prompt=prompt)
        except DataError as error:
            written, shown = error.for_files, error.en.removeprefix(error.for_files.en)
            raise BadRow(written.ja, written.en, shown.strip(" ().")) from None

    def take_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        """(special tokens, keys not in the prompt) counted so far; counting begins anew."""
        counted = dict(self.special_tokens), dict(self.not_in_prompt)
        self.special_tokens.clear()
        self.not_in_prompt.clear()
        return counted

    def note(self, key: str) -> None:
        """Counts a row whose key the template leaves out."""
        self.not_in_prompt[key] = self.not_in_prompt.get(key, 0) + 1


def _any_of(names: set[str]) -> re.Pattern[str] | None:
    words = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, words))) if words else None


def render_sample(sample: Sample, prompts: Prompts) -> list[Rendered]:
    """The texts of a sample: one, or one for each answer where the template rewrites earlier turns; of two answers to
    compare two.

    Raises:
        BadRow: the template refuses the conversation or cannot show what it is about, a message holds a special token,
            or a plain text is to be trained on its assistant's turns.
    """
    if isinstance(sample, PlainText):
        if prompts.loss_on == "assistant":
            raise BadRow(
                "data.loss_on が assistant ですが、ただの文章には応答がありません（auto か all に）",
                "data.loss_on is assistant, but plain text has no assistant message (use auto or all)",
            )
        for token in prompts.special.findall(sample.text) if prompts.special is not None else ():
            prompts.special_tokens[token] = prompts.special_tokens.get(token, 0) + 1
        whole = ((0, len(sample.text)),)
        return [Rendered(sample.text, whole, whole, sample.source, True, True)]
    if isinstance(sample, Comparison):
        return _render_sides(sample, prompts)
    if isinstance(sample, Judged):
        return [replace(render_sample(sample.conversation, prompts)[-1], mark=1 if sample.good else -1)]
    _check_special(sample, prompts)
    messages = sample.as_dicts()
    text = prompts.text(messages, sample.tools)
    _check_shown(sample, text, prompts)
    spans = _spans(text, sample, messages, prompts)
    if spans is None and (prompts.loss_on != "all" or not _all_learnt(sample)):
        return [
            _single_turn(sample, messages, index, prompts)
            for index, message in enumerate(sample.messages)
            if message.role == "assistant" and message.learn
        ]
    if prompts.loss_on == "all":
        learnt = _without(len(text), [span for span, message in spans or () if not message.learn])
        written = _written(text, sample.messages, learnt)
        return [Rendered(text, learnt, written, sample.source, False, not _ends_turn(text, prompts.marks))]
    assert spans is not None
    learnt = tuple(span for span, message in spans if message.learn)
    end = learnt[-1][1]
    written = tuple(part for span, message in spans if message.learn for part in _written(text, [message], [span]))
    return [Rendered(text[:end], learnt, written, sample.source, False, not _ends_turn(text[:end], prompts.marks))]


def _render_sides(sample: Comparison, prompts: Prompts) -> list[Rendered]:
    """The whole conversations of two answers; of answers of several turns the last one alone is scored on both sides where
    the template rewrites earlier turns of either.
    """
    noted = dict(prompts.not_in_prompt)
    texts = [render_sample(side, prompts) for side in sample.sides]
    if any(len(items) > 1 for items in texts):
        texts = [[_single_turn(side, side.as_dicts(), len(side.messages) - 1, prompts)] for side in sample.sides]
    for key in prompts.not_in_prompt:  # it is one row
        prompts.not_in_prompt[key] = min(prompts.not_in_prompt[key], noted.get(key, 0) + 1)
    return [replace(items[0], side=name) for name, items in zip(SIDES, texts, strict=True)]


def _all_learnt(sample: Conversation) -> bool:
    return all(message.learn for message in sample.messages if message.role == "assistant")


def _without(length: int, holes: Sequence[Span]) -> tuple[Span, ...]:
    """A text's range without some of its parts."""
    edges = [0, *(edge for hole in holes for edge in hole), length]
    return tuple((start, stop) for start, stop in zip(edges[::2], edges[1::2], strict=True) if start < stop)


def _written(text: str, messages: Sequence[Message], within: Sequence[Span]) -> tuple[Span, ...]:
    """Where the messages' own words stand inside some ranges of a text; what a template adds is no one's words."""
    parts: list[Span] = []
    cursor = within[0][0] if within else 0
    for words in (words for item in messages for words in (item.reasoning, item.content, item.input) if words.strip()):
        start = text.find(words.strip(), cursor)
        if start < 0:
            continue
        cursor = start + len(words.strip())
        parts += [(max(start, low), min(cursor, high)) for low, high in within if max(start, low) < min(cursor, high)]
    return tuple(parts)


def _check_special(sample: Conversation, prompts: Prompts) -> None:
    """Refuses a message in which the tokenizer would read a special token that its writer meant as characters."""
    for message in sample.messages:
        for words in (message.content, message.input, message.reasoning):
            special = prompts.special_in(words)
            if special is not None:
                named = special[1]
                raise BadRow(
                    f"{message.role} の文に特殊トークンと同じ文字列 {named} があります。文の途中で特殊トークンとして学習されてしまうため、"
                    "取り除くか別の文字にしてください",
                    f"a message of {message.role} contains {named}, which this tokenizer reads as a special token; "
                    "remove it or write it in other characters",
                )
            for token in prompts.own_markup.findall(words) if words and prompts.own_markup is not None else ():
                prompts.special_tokens[token] = prompts.special_tokens.get(token, 0) + 1


def _check_beside(sample: Conversation, text: str, prompts: Prompts) -> None:
    """The same for what the text shows of tools, calls and names."""
    for words in words_beside(sample):
        special = prompts.special_in(words)
        if special is not None and _shows(words, text):
            raise BadRow(
                f"ツールの説明・呼び出しかメッセージの name に、特殊トークンと同じ文字列 {special[1]} があります。特殊トークンとして学習されてしまうため、"
                "取り除くか別の文字にしてください",
                f"a tool, a tool call or the name of a message contains {special[1]}, which this tokenizer reads as a special "
                "token; remove it or write it in other characters",
            )


def _check_shown(sample: Conversation, text: str, prompts: Prompts) -> None:
    """Compares what a row holds with what its text shows: a call that is not shown would be learnt as its absence."""
    for message in sample.messages:
        for call in message.tool_calls:
            if str(call["function"]["name"]) not in text:
                raise BadRow(
                    "ツール呼び出し（tool_calls）がありますが、このモデルのチャットテンプレートはツールを扱えません",
                    "it holds a tool call, which the chat template of this model cannot show",
                    call["function"]["name"],
                )
        if message.role == "tool" and message.content.strip() and not _shows(message.content, text):
            raise BadRow(
                "tool の発言がありますが、このモデルのチャットテンプレートはツールを扱えません",
                "it holds a tool message, which the chat template of this model does not show",
            )
    _check_beside(sample, text, prompts)
    for role in sorted({item.role for item in sample.messages if not _begins_in(item, text)}):
        prompts.note(role)
    if any(message.reasoning.strip() and message.reasoning.strip() not in text for message in sample.messages):
        prompts.note("reasoning_content")
    names = [tool.get("function", tool).get("name") for tool in sample.tools if isinstance(tool, Mapping)]
    if any(str(name) not in text for name in names):
        prompts.note("tools")
    for key in sorted({key for message in sample.messages for key in message.extra}):
        if any(str(message.extra[key]) not in text for message in sample.messages if key in message.extra):
            prompts.note(key)


def shows_beginning(content: str, text: str) -> bool:
    """Whether a text has the first words of a content: some templates write a sentence of their own in place of any system
    text, and some know contents as lists of parts only and show nothing of a text.
    """
    first = next((line for line in map(str.strip, content.splitlines()) if line), "")[:_BEGINNING]
    return _shows(first, text)


def _begins_in(message: Message, text: str) -> bool:
    return message.role not in ("system", "user") or shows_beginning(message.content, text)


def _shows(content: str, text: str) -> bool:
    """Whether a text holds a content, as it is or as JSON within a string."""
    return content.strip() in text or json.dumps(content, ensure_ascii=False)[1:-1] in text


def _single_turn(sample: Conversation, messages: list[dict[str, Any]], index: int, prompts: Prompts) -> Rendered:
    """One assistant's turn of a conversation whose template rewrites earlier turns."""
    prompt = prompts.text(messages[:index], sample.tools, prompt=True)
    whole = prompts.text(messages[: index + 1], sample.tools)
    if not whole.startswith(prompt):
        shared = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), 0)
        raise BadRow(
            f"チャットテンプレートの生成プロンプトが、応答を含む全体の先頭と一致しません（{shared} 文字目から）。model.chat_template で別のテンプレートを指定してください",
            "the template's generation prompt is not a prefix of the whole conversation (differs from character "
            f"{shared}); choose another model.chat_template",
        )
    span = (len(prompt), _end_of_turn(whole, len(prompt), len(whole), prompts.marks))
    text = whole[: span[1]]
    written = _written(text, [sample.messages[index]], [span])
    return Rendered(text, (span,), written, sample.source, False, not _ends_turn(text, prompts.marks))


def _spans(
    text: str, sample: Conversation, messages: list[dict[str, Any]], prompts: Prompts
) -> list[tuple[Span, Message]] | None:
    """Character ranges of the assistant's turns with their turn-end token, or None where the template rewrites
    history.
    """
    spans: list[tuple[Span, Message]] = []
    for index, message in enumerate(sample.messages):
        if message.role != "assistant":
            continue
        prompt = prompts.text(messages[:index], sample.tools, prompt=True)
        upto = text if index == len(messages) - 1 else prompts.text(messages[: index + 1], sample.tools)
        if not (text.startswith(prompt) and text.startswith(upto) and len(upto) > len(prompt)):
            return None
        spans.append(((len(prompt), _end_of_turn(text, len(prompt), len(upto), prompts.marks)), message))
    return spans


def _ends_turn(text: str, marks: tuple[str, ...]) -> bool:
    return text.rstrip().endswith(marks)


def _end_of_turn(text: str, start: int, stop: int, marks: tuple[str, ...]) -> int:
    """Where a turn's loss ends: behind its turn-end token, before the line end that some templates print after it."""
    stripped = text[start:stop].rstrip()
    return start + len(stripped) if stripped.endswith(marks) else stop
