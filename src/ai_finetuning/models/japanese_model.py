"""JapaneseModel: the documented interface of Japanese language models."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ToolkitError
from ..japanese.default_system import system_turn
from ..japanese.prompts import user_turn
from ..messages import notice, warn
from ..system.gpu import free_memory_bytes, get_available_device
from . import catalog
from .adapters import load_adapter
from .base_model import BaseModel, WeightOptions
from .generation import generate_text, stream_text
from .hub import locate_base
from .loading import bits_as_trained, load_causal_lm, weight_fingerprint
from .named import find_named
from .source import ModelSource, find_model, find_tokenizer
from .tokenizers import load_tokenizer, prompt_style
from .wrong_objects import require_text, require_texts

SUPPORTED_MODELS: dict[str, dict[str, Any]] = catalog.supported_models()


class JapaneseModel(BaseModel):
    """A Japanese language model by hub id, alias, folder or `embedded:kotoha-tiny`; an adapter's folder answers on its
    base, loaded as it was in training.

    Args:
        model_name: one of SUPPORTED_MODELS, any other hub id, a folder, or `embedded:NAME`, which ships in the package.
        device: None takes the best one.
        load_in_8bit, load_in_4bit: bitsandbytes weights, on CPUs too.
        torch_dtype: of the weights; None takes what the machine does well.
        use_flash_attention: flash-attention 2 where it is installed, else SDPA, else eager; False begins with SDPA.
        gradient_checkpointing: recompute activations in the backward pass.
        attention: `auto` or one implementation.
        chat_template: a template's name in the catalog, a file or Jinja text.
        trust_remote_code: run code from the model's repository.
    """

    SUPPORTED_MODELS = SUPPORTED_MODELS

    def __init__(
        self,
        model_name: str = "stabilityai/japanese-stablelm-3b-4e1t-instruct",
        device: torch.device | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        torch_dtype: torch.dtype | None = None,
        use_flash_attention: bool = True,
        gradient_checkpointing: bool = False,
        *,
        attention: str = "auto",
        chat_template: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(model_name, device, load_in_8bit, load_in_4bit, torch_dtype)
        self.use_flash_attention = use_flash_attention
        self.gradient_checkpointing = gradient_checkpointing
        self.attention = attention
        self.chat_template = chat_template
        self.trust_remote_code = trust_remote_code
        self._fingerprint: dict[str, tuple[float, ...]] = {}

    def load_model(self) -> PreTrainedModel:
        """Loads the weights in eval mode (or returns them, where they are loaded already).

        Raises:
            ModelError, HubError, InputNotFoundError: with the reason and the way out.
        """
        if self.model is not None:
            return self.model
        bits = 4 if self.load_in_4bit else 8 if self.load_in_8bit else None
        options = WeightOptions(dtype=self.torch_dtype, device=self.device, bits=bits)
        named = find_named(self.model_name)
        if named.kind == "adapter":
            source = find_model(locate_base(named.path), trust_remote_code=self.trust_remote_code)
            options = replace(options, bits=bits_as_trained(named.path, source, bits))
            self.model = load_adapter(self.load_weights(source, options), named.path).eval()
        else:
            self.model = self.load_weights(self.find(), options)
        self._fingerprint = weight_fingerprint(self.model)
        return self.model

    def load_weights(self, source: ModelSource, options: WeightOptions) -> PreTrainedModel:
        """A module of its own in eval mode, after the licence's conditions; see BaseModel.load_weights."""
        for ja, en in source.catalog_row.licence_notices() if source.catalog_row is not None else ():
            notice(ja, en)
        own = "sdpa" if self.attention == "auto" and not self.use_flash_attention else self.attention
        return load_causal_lm(
            source,
            dtype=options.dtype,
            device=options.device,
            attention=options.attention or own,
            load_in_8bit=options.bits == 8,
            load_in_4bit=options.bits == 4,
            gradient_checkpointing=self.gradient_checkpointing,
            device_map=options.device_map,
        )

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer with pad token and chat template (or returns it, where it is loaded already)."""
        if self.tokenizer is None:
            self.tokenizer = load_tokenizer(
                self._tokenizer_source(), chat_template=self.chat_template, trust_remote_code=self.trust_remote_code
            )
        return self.tokenizer

    def _tokenizer_source(self) -> ModelSource:
        """Where the tokenizer is: with the model, or alone in a folder without one."""
        named = find_named(self.model_name)
        return find_tokenizer(self.model_name) if named.kind in ("adapter", "tokenizer", "other") else self.find()

    def weights_changed(self) -> bool:
        """Whether loaded weights differ from those on disk."""
        return self.model is not None and weight_fingerprint(self.model) != self._fingerprint

    def unload(self) -> None:
        """Forgets the weights; the next use loads them again."""
        self.model = None
        self._fingerprint = {}

    def generate_japanese(
        self,
        instruction: str,
        input_text: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 50,
        do_sample: bool = True,
        **kwargs: Any,
    ) -> str:
        """The model's answer to an instruction, without the prompt.

        Args:
            instruction: what to do.
            input_text: material for it, put behind the instruction.
            max_new_tokens: most tokens of the answer (a token is about 0.7 to 2.3 Japanese characters, by model).
            temperature, top_p, top_k, do_sample: sampling, as in transformers.
            **kwargs: `history` (earlier messages), `system` (system text; without it the one that the model was trained
                with, "" for none), `seed`, and arguments of `generate`.
        """
        require_text("instruction", instruction, several="generate_batch")
        messages = _messages(self.ensure_tokenizer(), instruction, input_text, kwargs)
        return self._generate([messages], max_new_tokens, temperature, top_p, top_k, do_sample, kwargs)[0]

    def generate_batch(
        self,
        instructions: list[str],
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.9,
        top_k: int = 50,
        do_sample: bool = True,
        **kwargs: Any,
    ) -> list[str]:
        """Answers to several instructions, in their order; `batch_size` (32) says how many are answered at a time."""
        require_texts("instructions", instructions, "generate_japanese")
        tokenizer = self.ensure_tokenizer()
        conversations = [_messages(tokenizer, item, None, dict(kwargs)) for item in instructions]
        rest = {key: value for key, value in kwargs.items() if key not in ("history", "system")}
        return self._generate(conversations, max_new_tokens, temperature, top_p, top_k, do_sample, rest)

    def stream_japanese(self, instruction: str, input_text: str | None = None, **kwargs: Any) -> Iterator[str]:
        """The answer of generate_japanese piece by piece."""
        require_text("instruction", instruction, several="generate_batch")
        messages = _messages(self.ensure_tokenizer(), instruction, input_text, kwargs)
        model, tokenizer = self.ensure_model(), self.ensure_tokenizer()
        yield from stream_text(
            model, tokenizer, messages, style=prompt_style(tokenizer, model.generation_config), **kwargs
        )

    def _generate(
        self,
        conversations: list[list[dict[str, str]]],
        max_new_tokens: int,
        temperature: float,
        top_p: float,
        top_k: int,
        do_sample: bool,
        extra: dict[str, Any],
    ) -> list[str]:
        model, tokenizer = self.ensure_model(), self.ensure_tokenizer()
        style = prompt_style(tokenizer, model.generation_config)
        return generate_text(
            model,
            tokenizer,
            conversations,
            style=style,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            do_sample=do_sample,
            **extra,
        )

    def load_with_fallback(self, fallback_models: list[str] | None = None) -> bool:
        """Loads the requested model, else the first of the others that loads; says which, and why the rest did not.

        Args:
            fallback_models: what to try next; None takes what fits this machine from the catalog.

        Returns:
            Whether any was loaded. `model_name` is then the one that was.

        Raises:
            ConfigError: fallback_models is one name and no list.
        """
        requested = self.model_name
        if isinstance(fallback_models, str):
            require_texts("fallback_models", fallback_models)
        if fallback_models is None:
            fallback_models = catalog.fallback_order(
                requested, free_memory_bytes(self.device or get_available_device())
            )
        for name in [requested, *fallback_models]:
            self.model_name, self.model, self.tokenizer = name, None, None
            try:
                self.load_tokenizer()
                self.load_model()
            except (ToolkitError, OSError, RuntimeError, ValueError) as error:
                warn(f"{name} は読み込めませんでした: {error}", f"{name} was not loaded: {error}")
                continue
            if name != requested:
                notice(f"{requested} の代わりに {name} を読み込みました。", f"loaded {name} instead of {requested}.")
            return True
        self.model_name, self.model, self.tokenizer = requested, None, None
        return False

    @classmethod
    def list_supported_models(cls) -> dict[str, Any]:
        """What the catalog knows: SUPPORTED_MODELS."""
        return dict(SUPPORTED_MODELS)


def _messages(
    tokenizer: Any, instruction: str, input_text: str | None, options: dict[str, Any]
) -> list[dict[str, str]]:
    """The conversation of one question; takes `history` and `system` out of the options."""
    history = list(options.pop("history", None) or [])
    head = system_turn(tokenizer, options.pop("system", None))
    return [*head, *history, user_turn(instruction, input_text)]
