"""The currency of the data package: every format becomes one of these."""

from __future__ import annotations

from dataclasses import dataclass

from ..japanese.prompts import user_turn


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: role `system`, `user` or `assistant`, its text, and the material that a user's instruction is about."""

    role: str
    content: str
    input: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation whose assistant turns are learnt; source says where it came from (`faq.csv:12`)."""

    messages: tuple[Message, ...]
    source: str = ""

    def as_dicts(self) -> list[dict[str, str]]:
        """The messages as chat templates take them."""
        return [
            user_turn(message.content, message.input)
            if message.role == "user"
            else {"role": message.role, "content": message.content}
            for message in self.messages
        ]


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text all of whose tokens are label tokens."""

    text: str
    source: str = ""


Sample = Conversation | PlainText
