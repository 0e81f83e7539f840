"""The currency of the data package: every format becomes one of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..japanese.prompts import user_turn


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        content: its text.
        input: the material that a user's instruction is about.
        learn: whether an assistant's turn carries loss.
        tool_calls: what the assistant calls, as chat templates take it.
        reasoning: the assistant's thinking before its answer.
        extra: further keys for the template (`name`, `tool_call_id`).
    """

    role: str
    content: str
    input: str = ""
    learn: bool = True
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    reasoning: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def joins(self, other: Message) -> bool:
        """Whether another turn continues this one: the same speaker, learnt alike, with text only."""
        plain = not (
            self.tool_calls or other.tool_calls or self.reasoning or other.reasoning or self.extra or other.extra
        )
        return plain and self.role == other.role != "tool" and self.learn == other.learn

    def as_dict(self) -> dict[str, Any]:
        """The message as chat templates take it; they know three names for the thinking."""
        if self.role == "user":
            return {**user_turn(self.content, self.input), **self.extra}
        message: dict[str, Any] = {"role": self.role, "content": self.content, **self.extra}
        if self.tool_calls:
            message["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.reasoning:
            message |= dict.fromkeys(("reasoning_content", "thinking", "reasoning"), self.reasoning)
        return message


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation whose assistant turns are learnt; source says where it came from (`faq.csv:12`)."""

    messages: tuple[Message, ...]
    source: str = ""
    tools: tuple[Any, ...] = ()

    def as_dicts(self) -> list[dict[str, Any]]:
        """The messages as chat templates take them."""
        return [message.as_dict() for message in self.messages]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text all of whose tokens are label tokens."""

    text: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt, one of them the better.

    Attributes:
        prompt: what both answer; nothing of it is learnt.
        chosen, rejected: the better and the worse answer: a turn of the assistant, or several with the user's between.
        source, tools: see Conversation.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    source: str = ""
    tools: tuple[Any, ...] = ()

    @property
    def sides(self) -> tuple[Conversation, Conversation]:
        """The whole conversations, the better one first."""
        first, second = ((*self.prompt, *side) for side in (self.chosen, self.rejected))
        return Conversation(first, self.source, self.tools), Conversation(second, self.source, self.tools)


@dataclass(frozen=True, slots=True)
class Judged:
    """A conversation whose last answer somebody called good or bad; nothing but that answer is learnt."""

    conversation: Conversation
    good: bool

    @property
    def source(self) -> str:
        """Where it came from."""
        return self.conversation.source


Sample = Conversation | PlainText | Comparison | Judged


def messages_of(sample: Sample) -> tuple[Message, ...]:
    """All messages of a sample, those of two answers one behind the other; none of a plain text."""
    if isinstance(sample, Comparison):
        return (*sample.prompt, *sample.chosen, *sample.rejected)
    if isinstance(sample, Judged):
        return sample.conversation.messages
    return () if isinstance(sample, PlainText) else sample.messages


def words_beside(sample: Sample) -> Iterator[str]:
    """What a sample holds for the template besides the texts of its messages: calls, names, descriptions of tools."""
    for message in messages_of(sample):
        if message.tool_calls or message.extra:
            yield from _words((message.tool_calls, message.extra))
    whole = sample.conversation if isinstance(sample, Judged) else sample
    if not isinstance(whole, PlainText) and whole.tools:
        yield from _words(whole.tools)


def _words(value: Any) -> Iterator[str]:
    """The strings in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _words([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _words(item)
