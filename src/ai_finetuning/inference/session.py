"""A model for talking: by name or adapter folder, with its tokenizer; a chat with history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UsageError
from ..models.adapter_folder import is_adapter
from ..models.adapters import load_adapter, saved_tokenizer, without_adapter
from ..models.generation import generate_text, stream_text
from ..models.hub import named_base
from ..models.loading import load_causal_lm
from ..models.options import validate_bits
from ..models.quantized import allow_cpu_packing
from ..models.tokenizers import load_tokenizer


@dataclass
class OpenModel:
    """A model ready to answer.

    Attributes:
        model, tokenizer: loaded, in eval mode.
        base_name: what the weights were loaded from.
        has_adapter: whether a LoRA adapter lies on them.
    """

    model: Any
    tokenizer: Any
    base_name: str
    has_adapter: bool

    @contextlib.contextmanager
    def adapter(self, on: bool) -> Iterator[None]:
        """Answers with or without the adapter inside the block."""
        if on or not self.has_adapter:
            yield
        else:
            with without_adapter(self.model):
                yield


def open_model(
    name: str,
    *,
    base: str | None = None,
    bits: int | None = None,
    dtype: str = "auto",
    device: torch.device | None = None,
    chat_template: str | None = None,
    trust_remote_code: bool = False,
) -> OpenModel:
    """Loads a model, or an adapter's folder with its base.

    Args:
        name: hub id, alias, folder of a model, or folder of an adapter.
        base: the adapter's base, where the one in its configuration is not to be used.
        bits: 4 or 8 loads the base quantized.

    Raises:
        UsageError: a base for something that is no adapter, other bits than 4 and 8. ToolkitError: as loading raises.
    """
    validate_bits(bits, "bits")
    adapter = is_adapter(name)
    if base is not None and not adapter:
        raise UsageError(
            f"{name} は LoRA アダプターではないので、--base は使えません。",
            f"{name} is not a LoRA adapter, so --base does not apply.",
        )
    loaded = (base or named_base(name)) if adapter else name
    with_tokenizer = (saved_tokenizer(name) if adapter else None) or loaded
    tokenizer = load_tokenizer(with_tokenizer, chat_template=chat_template, trust_remote_code=trust_remote_code)
    model: Any = load_causal_lm(
        loaded,
        dtype=dtype,
        device=device,
        load_in_4bit=bits == 4,
        load_in_8bit=bits == 8,
        trust_remote_code=trust_remote_code,
    )
    if adapter:
        model = load_adapter(model, name)
    allow_cpu_packing(model)  # for answers only: nothing here trains or saves these weights
    return OpenModel(model.eval(), tokenizer, loaded, adapter)


@dataclass
class Chat:
    """A conversation that continues."""

    opened: OpenModel
    system: str | None = None
    history: list[dict[str, str]] = field(default_factory=list)

    def _messages(self, text: str) -> list[dict[str, str]]:
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, *self.history, {"role": "user", "content": text}]

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The answer piece by piece; question and answer join the history when it is complete."""
        pieces = []
        for piece in stream_text(self.opened.model, self.opened.tokenizer, self._messages(text), **options):
            pieces.append(piece)
            yield piece
        self.remember(text, "".join(pieces))

    def compare(self, text: str, **options: Any) -> tuple[str, str]:
        """(without, with the adapter) answers to the same question; the one with it joins the history."""
        answers = []
        for on in (False, True):
            with self.opened.adapter(on):
                answers += generate_text(self.opened.model, self.opened.tokenizer, [self._messages(text)], **options)
        self.remember(text, answers[1])
        return answers[0], answers[1]

    def remember(self, question: str, answer: str) -> None:
        """Adds a turn to the history."""
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
