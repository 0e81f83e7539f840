"""A new model with random weights, to be trained from scratch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..config.model import ArchitectureConfig
from ..errors import ConfigError, InputNotFoundError, ModelError
from ..system.gpu import get_available_device
from .base_model import BaseModel, WeightOptions
from .hub import on_disk
from .source import ModelSource, described, find_tokenizer
from .tokenizers import load_tokenizer


class ScratchModel(BaseModel):
    """Random weights of an architecture, with a trained tokenizer.

    Args:
        model_name: a folder or `embedded:NAME` with a tokenizer; with a config.json too, where architecture is None.
        architecture: sizes of a Llama; None reads config.json.
        device: None takes the best one.
        torch_dtype: that the trained model is saved in; None for fp32. Training keeps fp32 weights.
        attention: `auto` or one implementation.
        chat_template: a template's name, a file or Jinja text.
        seed: of the weights: the same seed gives the same model.
    """

    def __init__(
        self,
        model_name: str,
        architecture: ArchitectureConfig | None = None,
        device: torch.device | None = None,
        torch_dtype: torch.dtype | None = None,
        *,
        attention: str = "auto",
        chat_template: str | None = None,
        seed: int = 42,
    ) -> None:
        super().__init__(model_name, device, False, False, torch_dtype)
        self.architecture = architecture
        self.attention = attention
        self.chat_template = chat_template
        self.seed = seed

    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer in the folder.

        Raises:
            InputNotFoundError: no such folder.
        """
        if self.tokenizer is None:
            self.tokenizer = self._read_tokenizer()
        return self.tokenizer

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.find(), chat_template=self.chat_template)

    def load_model(self) -> PreTrainedModel:
        """Random fp32 weights, the same for the same seed.

        Raises:
            ConfigError: neither an architecture nor a config.json. ModelError: more tokens than embedding rows.
        """
        if self.model is not None:
            return self.model
        self.model = self.load_weights(self.find(), WeightOptions(device=self.device))
        return self.model

    def _find(self) -> ModelSource:
        if on_disk(self.model_name) is None:
            raise InputNotFoundError(
                f"method: pretrain の model.name は、トークナイザーのあるフォルダーです。{self.model_name} はありません（aift tokenizer train で作れます）。",
                f"with method: pretrain model.name is a folder with a tokenizer; {self.model_name} does not exist (aift "
                "tokenizer train makes one).",
            )
        return find_tokenizer(self.model_name)

    def load_weights(self, source: ModelSource, options: WeightOptions) -> PreTrainedModel:
        """Random fp32 weights, the same for the same seed; the process's random state stays as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = self.build(attention=options.attention or self.attention)
        nn.Module.to(model, options.device or get_available_device())
        model.train(False)
        return model

    def build(self, *, attention: str = "auto") -> PreTrainedModel:
        """The architecture with weights of the random state and on the default device of the moment.

        Raises:
            ConfigError: neither an architecture nor a config.json. ModelError: more tokens than embedding rows.
        """
        tokenizer = self.tokenizer or self._read_tokenizer()
        config = self._config(tokenizer)
        if len(tokenizer) > config.vocab_size:
            raise ModelError(
                f"トークナイザーは {len(tokenizer)} 個、config.json の vocab_size は {config.vocab_size} です。vocab_size を増やしてください。",
                f"the tokenizer has {len(tokenizer)} tokens and config.json a vocab_size of {config.vocab_size}; raise it.",
            )
        chosen = {} if attention == "auto" else {"attn_implementation": attention}
        build: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_config
        with described(self.model_name):
            return build(config, **chosen)

    def _config(self, tokenizer: Any) -> Any:
        ids = {
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        }
        sizes = self.architecture
        if sizes is not None:
            width = sizes.intermediate_size or -(-sizes.hidden_size * 8 // 3 // 32) * 32
            return LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=sizes.hidden_size,
                intermediate_size=width,
                num_hidden_layers=sizes.num_hidden_layers,
                num_attention_heads=sizes.num_attention_heads,
                num_key_value_heads=sizes.num_key_value_heads or sizes.num_attention_heads,
                max_position_embeddings=sizes.max_position_embeddings,
                rope_parameters={"rope_type": "default", "rope_theta": sizes.rope_theta},
                tie_word_embeddings=sizes.tie_word_embeddings,
                **ids,
            )
        folder = on_disk(self.model_name)
        if folder is None or not (folder / "config.json").is_file():
            raise ConfigError(
                f"method: pretrain には model.architecture か、{self.model_name} の中の config.json が必要です。",
                f"method: pretrain needs model.architecture, or a config.json in {self.model_name}.",
            )
        with described(self.model_name):
            return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
