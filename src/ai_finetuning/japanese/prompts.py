"""The one renderer of conversations, for training, chat and generation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import DataError, ModelError, Reason
from ..messages import excerpt

if TYPE_CHECKING:
    from .metered import Renderer

_LOOP = re.compile(r"\{%[-+]?\s*(for|endfor)\b")
# Of a template from outside: its bytes (the longest that makers publish have some 30,000), and its loops inside each other.
MAX_BYTES, MAX_LOOPS = 1 << 16, 6
# Names under which rows hold what an assistant thought; templates read the first or the second.
_THOUGHTS = ("reasoning_content", "thinking", "reasoning")
_SHOWN = 300


def validate_template(text: str) -> None:
    """Refuses a chat template that is larger than templates are, whose loops multiply, or that cannot be read.

    Raises:
        ModelError: with the limit, or with what Jinja says.
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
    _compiled(text)


def _compiled(text: Any) -> Renderer:
    """The renderer of a template, made once.

    Raises:
        ModelError: it is no template.
    """
    from .metered import compiled

    try:
        return compiled(text)
    except Exception as error:  # Jinja's own, and Python's of what Jinja makes of it: SyntaxError, RecursionError ...
        raise ModelError(
            f"チャットテンプレートを読めません（{_said(error)}）。model.chat_template で別のテンプレートを指定してください。",
            f"the chat template cannot be read ({_said(error)}); choose another one with model.chat_template.",
        ) from error


def _said(error: Exception) -> str:
    text = str(error).strip()
    return (
        text[:_SHOWN]
        if text and type(error).__module__.startswith("jinja2")
        else f"{type(error).__name__}: {text}"[:_SHOWN]
    )


def user_turn(instruction: str, material: str | None = None) -> dict[str, str]:
    """A user's message; templates that have a place of their own for the material (### 入力:) find the parts by name."""
    if not material:
        return {"role": "user", "content": instruction}
    return {"role": "user", "content": f"{instruction}\n\n{material}", "instruction": instruction, "input": material}


def _refusal(messages: Sequence[Mapping[str, Any]], reason: str, template: str) -> DataError:
    """Of a template, with its own words; of what it made of the row's, only the beginning is shown."""
    roles = ", ".join(str(message.get("role")) for message in messages)[:_SHOWN]
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
        ModelError: it takes more work or memory than a conversation needs (japanese/metered.py), or cannot be read.
    """
    from .meter import TooMuch

    try:
        return _compiled(tokenizer.chat_template).render(
            **_plain(tokenizer.special_tokens_map),
            messages=[_message(message) for message in messages],
            tools=_plain(list(tools)) or None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
        )
    except (TooMuch, RecursionError, MemoryError) as error:
        raise ModelError(
            "チャットテンプレートの処理が重すぎるため止めました（繰り返し、または作られる文が会話に対して多すぎます）。model.chat_template で別のテンプレートを指定してください。",
            f"the chat template takes too much time or memory for this conversation ({str(error)[:_SHOWN] or type(error).__name__}); "
            "choose another one with model.chat_template.",
        ) from None
    except ModelError:
        raise
    except Exception as error:  # raise_exception of the template itself, and whatever its expressions meet
        raise _refusal(messages, _said(error), str(tokenizer.chat_template)) from None


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as templates know it, with what was thought under both names that they read, and nothing that is null."""
    values: dict[str, Any] = {
        key: value if value.__class__ is str else _plain(value) for key, value in message.items() if value is not None
    }
    if values.keys().isdisjoint(_THOUGHTS):
        return values
    thought = next(values[name] for name in _THOUGHTS if name in values)
    return {"thinking": thought, **values, "reasoning_content": thought}


def _plain(value: Any) -> Any:
    """What a template may see: plain data; of anything else only the name of its kind, since methods are code."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"
