"""The one renderer of conversations, for training, chat and generation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from ..errors import DataError, ModelError, Reason
from ..messages import excerpt

# Templates that print today's date (llm-jp-4, gpt-oss) would render the same data differently every day; the date is
# frozen.
FROZEN_DATE = "2026-01-01"


# Linear: a quotation ends at the next mark of its kind, and each start is followed by its own mark.
_DATE_CALL = re.compile(r"""strftime_now\(\s{0,9}(?:'([^'\n]{0,99})'|"([^"\n]{0,99})")\s{0,9}\)""")
_LOOP = re.compile(r"\{%[-+]?\s*(for|endfor)\b")
# Of a template from outside: its bytes (the longest that makers publish have some 30,000), and its loops inside each other.
MAX_BYTES, MAX_LOOPS = 1 << 16, 6


def validate_template(text: str) -> None:
    """Refuses a chat template that is larger than templates are, or whose loops multiply.

    Raises:
        ModelError: with the limit.
    """
    depth = deepest = 0
    for tag in _LOOP.finditer(text[: MAX_BYTES + 1]):
        depth += 1 if tag.group(1) == "for" else -1
        deepest = max(deepest, depth)
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES or deepest > MAX_LOOPS:
        raise ModelError(
            f"チャットテンプレートが大きすぎます（{MAX_BYTES // 1024} KB、繰り返しの入れ子 {MAX_LOOPS} 段まで）。model.chat_template で別のテンプレートを指定してください。",
            f"the chat template is too large (at most {MAX_BYTES // 1024} KB, and {MAX_LOOPS} loops inside each other); "
            "choose another one with model.chat_template.",
        )


@cache
def _frozen(template: str) -> str:
    """The template with its calls of strftime_now replaced by the frozen date, as text."""
    day = datetime.fromisoformat(FROZEN_DATE)
    return _DATE_CALL.sub(lambda call: repr(day.strftime(call.group(1) or call.group(2) or "")), template)


def user_turn(instruction: str, material: str | None = None) -> dict[str, str]:
    """A user's message; templates that have a place of their own for the material (### 入力:) find the parts by name."""
    if not material:
        return {"role": "user", "content": instruction}
    return {"role": "user", "content": f"{instruction}\n\n{material}", "instruction": instruction, "input": material}


def _refusal(messages: Sequence[Mapping[str, Any]], reason: str, template: str) -> DataError:
    """Of a template, with its own words; of what it made of the row's, only the beginning is shown."""
    roles = ", ".join(message["role"] for message in messages)
    own = f": {reason}" if reason in template else ""
    written = Reason(
        f"チャットテンプレートがこの会話（{roles}）を受け付けません{own}。model.chat_template で別のテンプレートを指定できます",
        f"the chat template refuses this conversation ({roles}){own}. Choose another one with model.chat_template",
    )
    found = "" if own else f" ({excerpt(reason)})"
    return DataError(f"{written.ja}{found}。", f"{written.en}{found}.", written)


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = False,
    tools: Sequence[Any] = (),
) -> str:
    """A conversation as the model reads it, by the tokenizer's chat template.

    Args:
        tokenizer: with a chat_template.
        messages: dicts with role and content.
        add_generation_prompt: end where the assistant begins to answer.
        tools: JSON schemas of functions, for templates that show them.

    Raises:
        DataError: the template refuses the conversation (roles that do not alternate, a system role it does not have).
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            tools=list(tools) or None,
            chat_template=_frozen(tokenizer.chat_template) if isinstance(tokenizer.chat_template, str) else None,
        )
    except Exception as error:  # jinja2.TemplateError of the template's own raise_exception, in any jinja version
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        raise _refusal(messages, str(error), str(tokenizer.chat_template)) from None
    return str(text)
