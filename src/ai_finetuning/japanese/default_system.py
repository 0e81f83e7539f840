"""The system text that a model was trained with, as the beginning of its chat template: every program that reads the
template (this one, transformers, vLLM, llama.cpp) then asks as the training did.

A conversation with a system message of its own keeps it; one whose system message is empty has none.
"""

from __future__ import annotations

import json
from typing import Any

_BEFORE = "{%- set aift_system = "
_BEHIND = (
    " -%}{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{%- set messages = [{'role': 'system', 'content': aift_system}] + messages -%}"
    "{%- elif not messages[0]['content'] -%}{%- set messages = messages[1:] -%}{%- endif %}\n"
)


def with_default_system(template: str, system: str | None) -> str:
    """A chat template with this text as the system message of conversations that have none; None takes it away."""
    body = split_default_system(template)[0]
    return f"{_BEFORE}{json.dumps(system, ensure_ascii=False)}{_BEHIND}{body}" if system else body


def split_default_system(template: str) -> tuple[str, str | None]:
    """(the template without, its default system text or None)."""
    if not template.startswith(_BEFORE):
        return template, None
    try:
        system, end = json.JSONDecoder().raw_decode(template, len(_BEFORE))
    except ValueError:
        return template, None
    if not isinstance(system, str) or not template.startswith(_BEHIND, end):
        return template, None
    return template[end + len(_BEHIND) :], system


def default_system(tokenizer: Any) -> str | None:
    """The system text that a tokenizer's model was trained with; None where its template has none of ours."""
    return split_default_system(str(tokenizer.chat_template or ""))[1]


def system_turn(tokenizer: Any, system: str | None) -> list[dict[str, str]]:
    """The system message of a conversation, as a list of one or none.

    Args:
        system: the text; None leaves it to the template, which may have a default; "" is a conversation without.
    """
    if system or (system is not None and default_system(tokenizer) is not None):
        return [{"role": "system", "content": system}]
    return []
