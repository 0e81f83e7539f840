"""What is known of the base before its weights are read: the module to plan with, and what cannot be trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError, ModelError
from ..models.base_model import BaseModel
from ..models.quantized import quantized_bits
from ..models.random_init import ScratchModel
from ..models.source import ModelSource, validate_safetensors
from ..parallel.plan import ParallelPlan
from ..planner.shape import meta_model
from ..planner.speed import place_of
from .request import TrainRequest


def is_peft(module: Any) -> bool:
    return hasattr(module, "peft_config")


def plain_module(model: BaseModel) -> Any:
    """The loaded module, where it is as its configuration says: no adapter, not quantized; else None."""
    loaded = model.model
    return loaded if loaded is not None and not is_peft(loaded) and quantized_bits(loaded) is None else None


def planned_module(model: BaseModel, source: ModelSource, *, weightless: bool = False) -> nn.Module:
    """The module that a plan is made for: the loaded one, or one on the meta device that has no weights.

    Args:
        weightless: its files of weights need not be here.

    Raises:
        ModelError: no causal language model can be built, or its weights are pickles.
    """
    loaded = plain_module(model)
    if loaded is not None:
        module: nn.Module = loaded
        return module
    if isinstance(model, ScratchModel):
        with torch.device("meta"):
            return model.build()
    if not weightless:
        validate_safetensors(source)
    return meta_model(source)


def identity(name: str) -> str:
    """What a checkpoint calls its base: a folder by its whole path, anything else by its name."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


def speed_key(request: TrainRequest, device: torch.device, parallel: ParallelPlan) -> tuple[str, str, str]:
    """(model, method, place) of a run: what its speed depends on."""
    place = place_of(device.type, device.index, parallel.strategy, parallel.processes)
    return identity(request.model.model_name), request.config.effective_method, place


def validate_method(request: TrainRequest, source: ModelSource) -> None:
    """Refuses, before anything is loaded, a base that the method cannot train.

    Raises:
        ConfigError: full fine-tuning of a quantized model, or LoRA on a base that bitsandbytes did not quantize.
        ModelError: QLoRA of weights that were changed in memory.
    """
    model, config = request.model, request.config
    stored = _quantization(model, source)
    method = stored.get("quant_method")
    method = None if method is None else str(getattr(method, "value", method))
    if not config.trains_all and method not in (None, "bitsandbytes"):
        raise ConfigError(
            f"{model.model_name} は {method} で量子化されています。QLoRA のベースにできるのは bitsandbytes だけです。量子化前のモデルを指定し、"
            "method: qlora にしてください。",
            f"{model.model_name} is quantized by {method}, and QLoRA trains on bitsandbytes only; name the model "
            "before quantization, with method: qlora.",
        )
    if config.trains_all:
        loaded = quantized_bits(model.model) if model.model is not None else None
        bits = 4 if model.load_in_4bit else 8 if model.load_in_8bit else loaded
        if bits is None and stored:
            bits = 4 if stored.get("load_in_4bit") else 8
        if bits is not None:
            raise ConfigError(
                f"{model.model_name} は {bits}bit に量子化されています。量子化した重みのフルファインチューニングはできません。LoRA（QLoRA）にするか、"
                "量子化せずに読み込んでください。",
                f"{model.model_name} is quantized to {bits} bit, which cannot be fine-tuned in full; use LoRA (QLoRA), or "
                "load it without quantization.",
            )
    elif config.uses_qlora and plain_module(model) is not None and _changed(model):
        raise ModelError(
            f"use_qlora=True のため {model.model_name} を量子化して読み込み直す必要がありますが、メモリー上の重みが変更されています。save_pretrained で保存し、"
            "そのフォルダーを指定してください。",
            f"use_qlora=True requires reloading {model.model_name} quantized, but its weights in memory were "
            "changed; save them with save_pretrained and name that folder.",
        )


def _changed(model: BaseModel) -> bool:
    changed = getattr(model, "weights_changed", None)
    return bool(changed()) if changed is not None else False


def _quantization(model: BaseModel, source: ModelSource) -> dict[str, Any]:
    """The quantization_config of the loaded module, or of the files where nothing is loaded; empty without one."""
    if model.model is None:
        return {} if isinstance(model, ScratchModel) else dict(source.quantization)
    stored = getattr(getattr(model.model, "config", None), "quantization_config", None)
    if stored is None:
        return {}
    return dict(stored if isinstance(stored, dict) else stored.to_dict())
