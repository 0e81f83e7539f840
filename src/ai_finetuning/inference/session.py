"""A model for talking: by name or adapter folder, with its tokenizer; a chat with history."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UsageError
from ..japanese.default_system import default_system, system_turn
from ..messages import warn
from ..models.adapter_folder import is_adapter
from ..models.adapters import load_adapter, saved_tokenizer, without_adapter
from ..models.generation import (
    Answer,
    End,
    Sampling,
    encode_prompts,
    generate_answers,
    prompt_tokens,
    say_ends,
    stream_text,
)
from ..models.hub import named_base
from ..models.loading import load_causal_lm
from ..models.options import validate_bits
from ..models.parts import positions_of
from ..models.quantized import allow_cpu_packing
from ..models.tokenizers import load_tokenizer

# The part of the model's positions that a long history leaves to the answer.
_FOR_ANSWER = 4


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

    @property
    def system(self) -> str | None:
        """The system text that the model was trained with, which is asked where no other is given."""
        return default_system(self.tokenizer)

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
    """A conversation that continues.

    Attributes:
        system: the system text; None is the one that the model was trained with, "" none.
        history: all turns so far.
        forgotten: turns (question and answer) at the beginning of the history that no longer fit into the model.
        ends: why the last answers ended, without and with the adapter where both were asked for.
    """

    opened: OpenModel
    system: str | None = None
    history: list[dict[str, str]] = field(default_factory=list)
    forgotten: int = 0
    ends: list[End] = field(default_factory=list)

    def _messages(self, text: str, options: Mapping[str, Any]) -> list[dict[str, str]]:
        """The conversation that ends with a question, as much of it as the model takes.

        Raises:
            ConfigError: the question alone is too long; the history stays. DataError: the template refuses it.
        """
        model, tokenizer = self.opened.model, self.opened.tokenizer
        head, question = system_turn(tokenizer, self.system), {"role": "user", "content": text}
        encode_prompts(model, tokenizer, [[*head, question]])
        positions, before = positions_of(model.config), self.forgotten
        if positions is not None:
            sampling, _ = Sampling.taken_from(options)
            most = positions - min(sampling.max_new_tokens, positions // _FOR_ANSWER)
            while self._turns() and prompt_tokens(tokenizer, [*head, *self._turns(), question]) > most:
                self.forgotten += 1
        if self.forgotten > before:
            warn(
                f"モデルは {positions} トークンまでのため、古いやり取り {self.forgotten} 組を除いて答えます。",
                f"the model takes {positions} tokens: the answer no longer sees the oldest {self.forgotten} turns.",
            )
        return [*head, *self._turns(), question]

    def _turns(self) -> list[dict[str, str]]:
        return self.history[2 * self.forgotten :]

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The answer piece by piece; question and answer join the history when it is complete.

        Raises:
            ConfigError, DataError: this question cannot be asked; the conversation stays as it was.
        """
        pieces, self.ends = [], []
        model, tokenizer, messages = self.opened.model, self.opened.tokenizer, self._messages(text, options)
        for piece in stream_text(model, tokenizer, messages, ended=self.ends.append, **options):
            pieces.append(piece)
            yield piece
        self.remember(text, "".join(pieces))

    def compare(self, text: str, **options: Any) -> tuple[str, str]:
        """(without, with the adapter) answers to the same question; the one with it joins the history.

        Raises:
            ConfigError, DataError: this question cannot be asked; the conversation stays as it was.
        """
        messages = self._messages(text, options)
        without, with_it = (answers[0] for answers in compare(self.opened, [messages], **options))
        self.ends = [without.end, with_it.end]
        say_ends(self.opened.model, [without, with_it], Sampling.taken_from(options)[0].max_new_tokens)
        self.remember(text, with_it.text)
        return without.text, with_it.text

    def remember(self, question: str, answer: str) -> None:
        """Adds a turn to the history."""
        self.history += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def undo(self) -> bool:
        """Takes the last turn back; False where there is none."""
        turns = len(self.history) // 2
        del self.history[-2:]
        self.forgotten = min(self.forgotten, len(self.history) // 2)
        return turns > 0

    def clear(self) -> None:
        """Forgets every turn."""
        self.history.clear()
        self.forgotten = 0


def compare(
    opened: OpenModel, conversations: Sequence[Sequence[dict[str, str]]], **options: Any
) -> tuple[list[Answer], list[Answer]]:
    """(without, with the adapter) answers to the same conversations; see generate_answers for the options."""
    answers = []
    for on in (False, True):
        with opened.adapter(on):
            answers.append(generate_answers(opened.model, opened.tokenizer, conversations, **options))
    return answers[0], answers[1]
