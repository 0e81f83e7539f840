"""BaseModel: the documented base class of all models."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError
from .placement import DeviceMap


class BaseModel(ABC):
    """A model by name; weights and tokenizer are loaded when they are first needed.

    Args:
        model_name: hub id, alias, `embedded:NAME` or folder.
        device: None takes the best one.
        load_in_8bit, load_in_4bit: bitsandbytes weights.
        torch_dtype: of the weights; None takes what the machine does well.

    Attributes:
        model, tokenizer: None until loaded.
    """

    def __init__(
        self,
        model_name: str,
        device: torch.device | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        torch_dtype: torch.dtype | None = None,
    ) -> None:
        if not isinstance(model_name, str) or not model_name.strip():
            raise ConfigError(
                f"model_name が {model_name!r} です。ハブの ID かフォルダーを書いてください。",
                f"model_name is {model_name!r}; give a hub id or a folder.",
            )
        if load_in_8bit and load_in_4bit:
            raise ConfigError(
                "load_in_8bit と load_in_4bit が両方 True です。どちらか一方にしてください。",
                "load_in_8bit and load_in_4bit are both True; choose one.",
            )
        self.model_name = model_name
        self.device = torch.device(device) if device is not None else None
        self.load_in_8bit = load_in_8bit
        self.load_in_4bit = load_in_4bit
        self.torch_dtype = torch_dtype
        # Devices by module name, set by training under model_parallel before it loads.
        self.device_map: DeviceMap | None = None
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None

    @abstractmethod
    def load_model(self) -> PreTrainedModel:
        """Loads the weights, keeps them in `model` and returns them."""

    @abstractmethod
    def load_tokenizer(self) -> PreTrainedTokenizerBase:
        """Loads the tokenizer, keeps it in `tokenizer` and returns it."""

    def ensure_model(self) -> PreTrainedModel:
        """The weights, loaded on first use."""
        return self.model if self.model is not None else self.load_model()

    def ensure_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded on first use."""
        return self.tokenizer if self.tokenizer is not None else self.load_tokenizer()
