"""The base model as a training method needs it: quantized or not, fp32 masters, unchanged."""

from __future__ import annotations

from typing import Any

import torch

from ..config.run import RunConfig
from ..errors import ConfigError, ModelError
from ..models import hub
from ..models.base_model import BaseModel
from ..models.loading import DTYPES, read_config
from ..models.quantized import quantized_bits
from ..models.scratch import ScratchModel
from ..notices import notice


def wanted_bits(model: BaseModel, config: RunConfig) -> int | None:
    """Bits of the base that will be trained on: 4 or 8, or None for 16 and 32."""
    if config.trains_all:
        return None
    if config.uses_qlora:
        return 4 if config.lora.qlora_4bit else 8
    return 4 if model.load_in_4bit else 8 if model.load_in_8bit else None


def _is_peft(module: Any) -> bool:
    return hasattr(module, "peft_config")


def plain_module(model: BaseModel) -> Any:
    """The loaded module, where it is as its configuration says: no adapter, not quantized; else None."""
    loaded = model.ensure_model() if isinstance(model, ScratchModel) else model.model
    return loaded if loaded is not None and not _is_peft(loaded) and quantized_bits(loaded) is None else None


def check_method(model: BaseModel, config: RunConfig) -> None:
    """Refuses, before anything is loaded, a base that the method cannot train.

    Raises:
        ConfigError: full fine-tuning of a quantized model, or LoRA on a base that bitsandbytes did not quantize.
            ModelError: QLoRA of weights that were changed in memory.
    """
    method = _quant_method(model)
    if not config.trains_all and method not in (None, "bitsandbytes"):
        raise ConfigError(
            f"{model.model_name} は {method} で量子化されています。QLoRA のベースにできるのは bitsandbytes だけです。量子化前のモデルを指定し、method: "
            "qlora にしてください。",
            f"{model.model_name} is quantized by {method}, and QLoRA trains on bitsandbytes only; name the model "
            "before quantization, with method: qlora.",
        )
    if config.trains_all:
        loaded = quantized_bits(model.model) if model.model is not None else None
        bits = 4 if model.load_in_4bit else 8 if model.load_in_8bit else loaded
        if bits is None and _stored_quantization(model):
            bits = 4 if _stored_quantization(model).get("load_in_4bit") else 8
        if bits is not None:
            raise ConfigError(
                f"{model.model_name} は {bits}bit に量子化されています。量子化した重みのフルファインチューニングはできません。LoRA（QLoRA）にするか、"
                "量子化せずに読み込んでください。",
                f"{model.model_name} is quantized to {bits} bit, which cannot be fine-tuned in full; use LoRA "
                "(QLoRA), or load it without quantization.",
            )
    elif config.uses_qlora and plain_module(model) is not None and _changed(model):
        raise ModelError(
            f"use_qlora=True のため {model.model_name} を量子化して読み込み直す必要がありますが、メモリー上の重みが変更されています。save_pretrained で保存し、"
            "そのフォルダーを指定してください。",
            f"use_qlora=True means loading {model.model_name} again, quantized, but its weights in memory were "
            "changed; save them with save_pretrained and name that folder.",
        )


def _changed(model: BaseModel) -> bool:
    changed = getattr(model, "weights_changed", None)
    return bool(changed()) if changed is not None else False


def _stored_quantization(model: BaseModel) -> dict[str, Any]:
    if model.model is not None or isinstance(model, ScratchModel):
        return {}
    return dict(read_config(hub.locate(model.model_name)).get("quantization_config") or {})


def _quant_method(model: BaseModel) -> str | None:
    """bitsandbytes, torchao, ... where the base is quantized, loaded or not."""
    loaded = getattr(getattr(model.model, "config", None), "quantization_config", None)
    if loaded is not None:
        loaded = loaded if isinstance(loaded, dict) else loaded.to_dict()
    method = (loaded or _stored_quantization(model)).get("quant_method")
    return None if method is None else str(getattr(method, "value", method))


def load_base(
    model: BaseModel, config: RunConfig, *, in_fp32: bool, as_stored: bool = False
) -> tuple[Any, torch.dtype]:
    """The base's module, loaded as the method needs it, and the dtype that a full model is saved in.

    Args:
        in_fp32: the run computes in fp32, so a frozen base whose dtype the user left open is loaded in it too.
        as_stored: leave the weights of a full method in the dtype of their file, so that they can stay views of it.
    """
    if model.model is not None and _is_peft(model.model):
        notice(
            "このモデルには前回のアダプターが付いているため、ベースを読み込み直して最初から訓練します。",
            "this model carries an earlier adapter: the base is loaded again and training starts from it.",
        )
        model.model = None
    if config.trains_all:
        return _load_full(model, as_stored=as_stored)
    bits = wanted_bits(model, config)
    if bits is not None and model.model is not None and quantized_bits(model.model) != bits:
        notice(
            f"use_qlora=True のため、{model.model_name} を {bits}bit で読み込み直します。",
            f"use_qlora=True: {model.model_name} is loaded again in {bits} bit.",
        )
        model.model = None
    if bits is not None:
        model.load_in_4bit, model.load_in_8bit = bits == 4, bits == 8
    module = _ensure(model, torch.float32 if in_fp32 and model.torch_dtype is None else model.torch_dtype)
    return module, next(module.parameters()).dtype


def _ensure(model: BaseModel, dtype: torch.dtype | None) -> Any:
    """The module, loaded in this dtype if it has to be; what the user asked for stays as it was said."""
    asked, model.torch_dtype = model.torch_dtype, dtype
    try:
        return model.ensure_model()
    finally:
        model.torch_dtype = asked


def _load_full(model: BaseModel, *, as_stored: bool) -> tuple[Any, torch.dtype]:
    """Weights to be trained in full are read in fp32, so that no digit of them is lost, and saved in the model's own
    dtype.
    """
    if isinstance(model, ScratchModel):
        return model.ensure_model(), model.torch_dtype or torch.float32
    if model.model is not None:
        return model.model, next(model.model.parameters()).dtype
    stored = read_config(hub.locate(model.model_name))
    own = DTYPES.get(str(stored.get("dtype") or stored.get("torch_dtype")), torch.float32)
    return _ensure(model, own if as_stored else torch.float32), model.torch_dtype or own
