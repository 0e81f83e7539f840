"""The system text of a run: that of its settings, of its model, or of all its conversations; saved with what it trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from ..data.rendering import shows_beginning
from ..errors import DataError, ModelError
from ..japanese.default_system import default_system, split_default_system, with_default_system
from ..japanese.prompts import render, validate_template
from ..messages import notice, on_one_line, warn

_SHOWN = 40


def shown(system: str) -> str:
    """The beginning of a system text, for a message on one line."""
    text = on_one_line(system)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def with_agreed_system(tokenizer: Any, given: str | None) -> Any:
    """The tokenizer under whose template a run trains; says where the system text of the model meets another one.

    Args:
        given: data.system_prompt; "" trains without the model's.

    Raises:
        ModelError: a system text that is too long for a chat template.
    """
    body, known = split_default_system(str(tokenizer.chat_template or ""))
    if given:
        validate_template(with_default_system(body, given))
    if known is None or known == given:
        return tokenizer
    if given is None:
        notice(
            f"システムプロンプトのない会話は、このモデルの学習時のもの「{shown(known)}」で学習します（data.system_prompt で変更、"
            'data.system_prompt="" でなし）。',
            f'conversations without a system prompt take the one that this model was trained with, "{shown(known)}" '
            '(data.system_prompt changes it, data.system_prompt="" leaves it out).',
        )
        return tokenizer
    ja, en = (f"「{shown(given)}」", f'to "{shown(given)}"') if given else ("なし", "to none")
    notice(
        f"システムプロンプトを、このモデルの学習時の「{shown(known)}」から変えて学習します: {ja}",
        f'the system prompt changes from the one that this model was trained with, "{shown(known)}", {en}.',
    )
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = body
    return changed


def keep_system(tokenizer: Any, given: str | None, common: str | None) -> None:
    """Puts the system text of a run into the tokenizer's chat template, where everything that answers finds it.

    Args:
        given: data.system_prompt.
        common: the system text that all conversations of the data had.
    """
    template = str(tokenizer.chat_template or "")
    system = given if given is not None else common or default_system(tokenizer)
    kept = with_default_system(template, system)
    if system and not _reaches(tokenizer, system):
        warn(
            f"システムプロンプト「{shown(system)}」は、チャットテンプレートが使わないため、学習にも回答にも入りません（model.chat_template で別のテンプレートを指定できます）。",
            f'the system prompt "{shown(system)}" is not used by the chat template: it is neither in the training nor in '
            "answers (model.chat_template takes another template).",
        )
        return
    try:
        validate_template(kept)
    except ModelError as error:
        warn(
            f"データのシステムプロンプトはモデルに保存しません: {error.ja}",
            f"the system prompt of the data is not saved with the model: {error.en}",
        )
        return
    tokenizer.chat_template = kept if template else tokenizer.chat_template
    if system:
        notice(
            f"システムプロンプト「{shown(system)}」をモデルと一緒に保存し、回答時の既定にします（--system で変更、"
            '--system "" でなし）。',
            f'the system prompt "{shown(system)}" is saved with the model as the default of its answers (--system '
            'changes it, --system "" leaves it out).',
        )


def _reaches(tokenizer: Any, system: str) -> bool:
    """Whether a template shows a system text at all; one that refuses it has refused rows already."""
    if not tokenizer.chat_template:
        return True
    turns = [{"role": "system", "content": system}, {"role": "user", "content": "A"}]
    try:
        return shows_beginning(system, render(tokenizer, turns, add_generation_prompt=True))
    except (DataError, ModelError):
        return True


def take_system(tokenizer: Any, folder: Path) -> None:
    """Makes a tokenizer in memory ask as the model that lies in a run's folder does."""
    file = folder / "chat_template.jinja"
    if tokenizer is not None and tokenizer.chat_template and file.is_file():
        system = split_default_system(file.read_text(encoding="utf-8"))[1]
        tokenizer.chat_template = with_default_system(str(tokenizer.chat_template), system)
