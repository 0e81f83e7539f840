"""A model for talking: by name or adapter folder, with its tokenizer; a chat with history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import UsageError
from ..japanese.default_system import default_system, system_turn
from ..messages import warn
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
from ..models.hub import locate_base
from ..models.loading import bits_as_trained, load_causal_lm
from ..models.options import validate_bits
from ..models.parts import positions_of, unwrapped
from ..models.placement import DeviceMap, spread
from ..models.quantized import allow_cpu_packing
from ..models.source import ModelSource, find_model
from ..models.tokenizers import load_tokenizer
from .usable import usable

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
    place: Callable[[ModelSource, int | None, str], DeviceMap | None] | None = None,
) -> OpenModel:
    """Loads whatever name can answer: a model, an adapter's folder with its base, a run or one of its checkpoints.

    Args:
        name: hub id, alias, `embedded:NAME`, or folder of a model, an adapter, a run or a checkpoint.
        base: the adapter's base, where the one in its configuration is not to be used.
        bits: 4 or 8 loads the base quantized, 16 does not; None: an adapter's base as it was in training, anything else
            as it is stored.
        place: the devices of the modules of a model that is loaded in so many bits and this dtype, instead of `device`;
            None from it takes `device`.

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
        adapter, loaded = None, named.path if named.step is not None else name
        with_tokenizer = loaded
    tokenizer = load_tokenizer(with_tokenizer, chat_template=chat_template, trust_remote_code=trust_remote_code)
    source = find_model(loaded, trust_remote_code=trust_remote_code)
    held = bits_as_trained(adapter, source, bits) if adapter is not None else None if bits == 16 else bits
    device_map = place(source, held, dtype) if place is not None else None
    model: Any = load_causal_lm(
        source,
        dtype=dtype,
        device=device,
        load_in_4bit=held == 4,
        load_in_8bit=held == 8,
        trust_remote_code=trust_remote_code,
        device_map=device_map,
    )
    if adapter is not None:
        model = load_adapter(model, adapter)
        if device_map is not None:  # the adapter's weights lie where their layers do
            spread(unwrapped(model), device_map)
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
