"""BaseModel: the documented base class of all models."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConfigError
from ..system.gpu import chosen_device
from .placement import DeviceMap
from .source import ModelSource, find_model


@dataclass(frozen=True)
class WeightOptions:
    """How a module is loaded.

    Attributes:
        dtype: of the weights; None takes what the machine does well.
        device: where they go; None takes the best one.
        device_map: devices by module name, instead of `device` (only models of this toolkit know it).
        bits: 4 or 8 for bitsandbytes weights.
        attention: an implementation, instead of the object's own choice.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None
    device_map: DeviceMap | None = None
    bits: int | None = None
    attention: str | None = None


def _as_name(given: object) -> str:
    """A path as a name; anything else in a name's place is refused."""
    if isinstance(given, os.PathLike):
        return str(os.fspath(given))
    kind = type(given).__name__
    raise ConfigError(
        f"model_name が {kind} です。モデルのオブジェクトではなく、ハブの ID かフォルダーを文字列で書いてください。",
        f"model_name is of type {kind}; give a hub id or a folder as a string, not a model itself.",
    )


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
        if not isinstance(model_name, str):
            model_name = _as_name(model_name)
        if not model_name.strip():
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
        self.device = chosen_device(device)
        self.load_in_8bit = load_in_8bit
        self.load_in_4bit = load_in_4bit
        self.torch_dtype = torch_dtype
        self._source: tuple[str, ModelSource] | None = None
        self.model: PreTrainedModel | None = None
        self.tokenizer: PreTrainedTokenizerBase | None = None

    def find(self) -> ModelSource:
        """Where the model is; looked up once for each name.

        Raises:
            InputNotFoundError, HubError, ModelError: it cannot be found, or not without being allowed more.
        """
        if self._source is None or self._source[0] != self.model_name:
            self._source = (self.model_name, self._find())
        return self._source[1]

    def use_source(self, source: ModelSource) -> None:
        """Uses what another process has found for this name."""
        self._source = (self.model_name, source)

    def _find(self) -> ModelSource:
        return find_model(self.model_name, trust_remote_code=bool(getattr(self, "trust_remote_code", False)))

    def load_weights(self, source: ModelSource, options: WeightOptions) -> PreTrainedModel:
        """A module of its own, loaded as training needs it; this object stays as it is.

        Args:
            source: what find() gave.
            options: how it is loaded.
        """
        other = copy.copy(self)
        other.model, other.device, other.torch_dtype = None, options.device, options.dtype
        other.load_in_4bit, other.load_in_8bit = options.bits == 4, options.bits == 8
        return other.load_model()

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
