"""The base model as a training method needs it: quantized or not, fp32 master weights, unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ConfigError, ModelError
from ..models.base_model import BaseModel
from ..models.loading import DTYPES
from ..models.quantized import quantized_bits
from ..models.scratch import ScratchModel
from ..models.source import ModelSource, require_safetensors
from ..notices import notice
from ..planner.shape import meta_model

if TYPE_CHECKING:
    from .request import TrainRequest
    from .resolve import RunPlan


def _is_peft(module: Any) -> bool:
    return hasattr(module, "peft_config")


def plain_module(model: BaseModel) -> Any:
    """The loaded module, where it is as its configuration says: no adapter, not quantized; else None."""
    loaded = model.model
    return loaded if loaded is not None and not _is_peft(loaded) and quantized_bits(loaded) is None else None


def planned_module(model: BaseModel, source: ModelSource) -> nn.Module:
    """The module that a plan is made for: the loaded one, or one on the meta device that has no weights.

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
    require_safetensors(source.path)
    return meta_model(source)


def identity(name: str) -> str:
    """What a checkpoint calls its base: a folder by its whole path, anything else by its name."""
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else name


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
            f"use_qlora=True means loading {model.model_name} again, quantized, but its weights in memory were "
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


def load_base(plan: RunPlan, placement: dict[str, Any], *, as_stored: bool = False) -> tuple[Any, torch.dtype]:
    """The base's module, loaded as the method needs it, and the dtype that a full model is saved in.

    The user's object is left as it is; weights that it holds and that do not serve are given up first, so that both
    need not fit in memory.

    Args:
        placement: `device` or `device_map`, as the strategy says.
        as_stored: leave the weights of a full method in the dtype of their file, so that they can stay views of it.
    """
    request, model = plan.request, plan.request.model
    _give_up_unfit_weights(request)
    if request.full:
        return _load_full(plan, placement, as_stored=as_stored)
    module = model.model
    if module is None:
        in_fp32 = plan.precision.name == "fp32" and model.torch_dtype is None
        dtype = torch.float32 if in_fp32 else model.torch_dtype
        module = _load(plan, placement, dtype, request.bits)
    return module, next(module.parameters()).dtype


def _give_up_unfit_weights(request: TrainRequest) -> None:
    model, bits = request.model, request.bits
    if model.model is not None and _is_peft(model.model):
        notice(
            "このモデルには前回のアダプターが付いているため、ベースを読み込み直して最初から訓練します。",
            "this model carries an earlier adapter: the base is loaded again and training starts from it.",
        )
        model.model = None
    if bits is not None and model.model is not None and quantized_bits(model.model) != bits:
        notice(
            f"use_qlora=True のため、{model.model_name} を {bits}bit で読み込み直します。",
            f"use_qlora=True: {model.model_name} is loaded again in {bits} bit.",
        )
        model.model = None


def _load(plan: RunPlan, placement: dict[str, Any], dtype: torch.dtype | None, bits: int | None = None) -> Any:
    """The weights of the plan's base; where the user left dtype and attention open, a resumed run has its own again."""
    model, taken = plan.request.model, plan.taken
    if dtype is None and taken.get("dtype") is not None:
        dtype = DTYPES[taken["dtype"]]
    attention = taken.get("attention") if getattr(model, "attention", "auto") == "auto" else None
    where = {"device": model.device} | placement
    return model.load_weights(plan.source, dtype=dtype, bits=bits, attention=attention, **where)


def _load_full(plan: RunPlan, placement: dict[str, Any], *, as_stored: bool) -> tuple[Any, torch.dtype]:
    """Weights to be trained in full are read in fp32, so that no digit of them is lost, and saved in the model's own
    dtype.
    """
    model = plan.request.model
    if isinstance(model, ScratchModel):
        module = model.model if model.model is not None else _load(plan, placement, None)
        return module, model.torch_dtype or torch.float32
    if model.model is not None:
        return model.model, next(model.model.parameters()).dtype
    stored = plan.source.config
    own = DTYPES.get(str(stored.get("dtype") or stored.get("torch_dtype")), torch.float32)
    return _load(plan, placement, own if as_stored else torch.float32), model.torch_dtype or own
