"""A model for talking: by name or adapter folder, with its tokenizer; a chat with history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UsageError
from ..models.adapters import load_adapter, saved_tokenizer, without_adapter
from ..models.generation import generate_text, stream_text
from ..models.hub import locate_base
from ..models.loading import bits_as_trained, load_causal_lm
from ..models.options import validate_bits
from ..models.quantized import allow_cpu_packing
from ..models.source import find_model
from ..models.tokenizers import load_tokenizer
from .usable import usable


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
    """Loads whatever name can answer: a model, an adapter's folder with its base, a run or one of its checkpoints.

    Args:
        name: hub id, alias, `embedded:NAME`, or folder of a model, an adapter, a run or a checkpoint.
        base: the adapter's base, where the one in its configuration is not to be used.
        bits: 4 or 8 loads the base quantized, 16 does not; None: an adapter's base as it was in training, anything else
            as it is stored.

    Raises:
        UsageError: a base for something that is no adapter, other bits. ToolkitError: as loading raises.
    """
    validate_bits(bits, "bits", sixteen=True)
    named = usable(name)
    if base is not None and named.kind != "adapter":
        raise UsageError(
            f"{name} は LoRA アダプターではないので、--base は使えません。",
            f"{name} is not a LoRA adapter, so --base does not apply.",
        )
    if named.kind == "adapter":
        adapter, loaded = named.path, locate_base(named.path, base)
        with_tokenizer = saved_tokenizer(adapter) or loaded
    else:
        adapter, loaded, with_tokenizer = None, named.path if named.step is not None else name, named.path
    tokenizer = load_tokenizer(with_tokenizer, chat_template=chat_template, trust_remote_code=trust_remote_code)
    source = find_model(loaded, trust_remote_code=trust_remote_code)
    held = bits_as_trained(adapter, source, bits) if adapter is not None else None if bits == 16 else bits
    model: Any = load_causal_lm(
        source,
        dtype=dtype,
        device=device,
        load_in_4bit=held == 4,
        load_in_8bit=held == 8,
        trust_remote_code=trust_remote_code,
    )
    if adapter is not None:
        model = load_adapter(model, adapter)
    allow_cpu_packing(model)  # for answers only: nothing here trains or saves these weights
    return OpenModel(model.eval(), tokenizer, loaded, adapter is not None)


def load_weights(name: str) -> Any:
    """The module alone of whatever open_model() takes, as it is stored or was trained; in eval mode."""
    named = usable(name)
    if named.kind == "adapter":
        return open_model(name).model
    return load_causal_lm(named.path if named.step is not None else name)


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
