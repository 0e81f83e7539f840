"""The weights of the base as a training method needs them: quantized or not, fp32 master weights, unchanged."""

from __future__ import annotations

from typing import Any

import torch

from ..messages import notice
from ..models.base_model import WeightOptions
from ..models.loading import DTYPES
from ..models.quantized import quantized_bits
from ..models.random_init import ScratchModel
from .base_facts import is_peft
from .request import TrainRequest
from .resolve import RunPlan


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
    if model.model is not None and is_peft(model.model):
        notice(
            "このモデルには前回のアダプターが付いているため、ベースを読み込み直して最初から学習します。",
            "this model has an adapter from an earlier run: reloading the base and training from it.",
        )
        model.model = None
    if bits is not None and model.model is not None and quantized_bits(model.model) != bits:
        notice(
            f"use_qlora=True のため、{model.model_name} を {bits}bit で読み込み直します。",
            f"use_qlora=True: {model.model_name} reloading in {bits} bit.",
        )
        model.model = None


def _load(plan: RunPlan, placement: dict[str, Any], dtype: torch.dtype | None, bits: int | None = None) -> Any:
    """The weights of the plan's base; where the user left dtype and attention open, a resumed run has its own again."""
    model, taken = plan.request.model, plan.taken
    if dtype is None and taken.get("dtype") is not None:
        dtype = DTYPES[taken["dtype"]]
    attention = taken.get("attention") if getattr(model, "attention", "auto") == "auto" else None
    where = {"device": model.device} | placement
    return model.load_weights(plan.source, WeightOptions(dtype=dtype, bits=bits, attention=attention, **where))


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
