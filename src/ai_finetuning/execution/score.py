"""Scores rows with the model as it is now: what a trainer's evaluate() does outside a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..data.example import Example
from ..data.loader import evaluation_batches
from ..data.prepare import load_examples, prepare
from ..engine.metrics import text_metrics
from ..engine.precision import resolve_precision
from ..engine.rng import DeviceRandomState
from ..errors import ConfigError
from ..messages import warn
from ..models.base_model import WeightOptions
from ..models.documents import select_forward_path, takes_positions
from ..models.parts import unwrapped
from ..models.random_init import ScratchModel
from ..parallel.processes import all_peers, gather, launched, process_group
from ..parallel.strategies.single import SingleDevice
from ..system.gpu import get_available_device
from ..system.out_of_memory import with_smaller_batches
from .build import loss_of
from .packing_check import validate_packing
from .predicting import predictions_for
from .request import TrainRequest


def score(request: TrainRequest, trained: nn.Module | None) -> dict[str, Any]:
    """The evaluation's numbers, as a row of metrics.jsonl has them, and those of compute_metrics.

    Of several processes the first one computes, since after some strategies only it has the whole model; the others
    wait for its numbers.

    Args:
        request: the base, the settings and the data; without training data all of held_out is scored.
        trained: the module that a run gave; None scores the base.

    Raises:
        ToolkitError: there is no evaluation data, or it cannot be read.
    """
    if request.eval_data is None:
        raise ConfigError(
            "評価用のデータがありません。evaluate(eval_dataset) か、トレーナーの eval_dataset（設定では data.eval）を指定してください。",
            "there is no evaluation data; give it to evaluate(), or give the trainer an eval_dataset (in a "
            "configuration: data.eval).",
        )
    objective = request.config.objective
    if objective != "sft":
        raise ConfigError(
            f"evaluate() は文章の損失を計算するもので、objective: {objective} の組や印は評価できません。評価データを data.eval（eval_dataset）に指定すると、学習中に eval_rewards/accuracies などを計算します。",
            f"evaluate() scores texts, and not the pairs or marks of objective: {objective}; with evaluation data in data.eval "
            "(eval_dataset) the run computes eval_rewards/accuracies and others as it trains.",
        )
    if launched().size == 1:
        return _score(request, trained)
    device = request.model.device or get_available_device()
    with process_group(torch.device("cuda", launched().local_rank) if device.type == "cuda" else device):
        peers = all_peers()
        obtained: dict[str, Any] = gather(_score(request, trained) if peers.is_main else None, peers)[0]
        return obtained


def _rows(request: TrainRequest) -> Sequence[Example]:
    config, tokenizer = request.config, request.model.ensure_tokenizer()
    if not isinstance(request.eval_data, float):
        return load_examples(request.eval_data, tokenizer, config.data)[0]
    if request.train is None:
        raise ConfigError(
            f"data.eval が割合（{request.eval_data}）ですが、学習データがないので分けられません。evaluate(eval_dataset) で行を渡してください。",
            f"data.eval is a share ({request.eval_data}) but there is no training data to take it from; give the rows "
            "to evaluate().",
        )
    return prepare(
        request.train, request.eval_data, tokenizer, config.data, seed=config.training.runtime.seed
    ).eval_data


def _base(request: TrainRequest) -> nn.Module:
    """The base as the user has loaded it, or else as training would load it, for this evaluation only: what the model
    object holds decides what train() begins with.
    """
    model = request.model
    if model.model is not None:
        return model.model
    device = model.device or get_available_device()
    runtime = request.config.training.runtime
    precision = resolve_precision(runtime.precision, fp16=request.config.training.fp16, device=device)
    dtype = model.torch_dtype
    if not isinstance(model, ScratchModel) and (request.full or (dtype is None and precision.name == "fp32")):
        dtype = torch.float32
    return model.load_weights(model.find(), WeightOptions(dtype=dtype, device=device, bits=request.bits))


def _score(request: TrainRequest, trained: nn.Module | None) -> dict[str, Any]:
    config = request.config
    examples = _rows(request)
    module: Any = trained if trained is not None else _base(request)
    inner = unwrapped(module)
    device = inner.get_output_embeddings().weight.device
    runtime = config.training.runtime
    precision = resolve_precision(runtime.precision, fp16=config.training.fp16, device=device)
    longest = max(map(len, examples))
    packing = max(config.data.max_length, longest) if config.data.packing else None
    predictions = predictions_for(request.hooks, examples, packing)
    path, _ = select_forward_path(inner, device, autocast=precision.autocast, kernels=runtime.kernels, longest=longest)
    random_state = DeviceRandomState()
    strategy = SingleDevice(device, autocast=precision.autocast)

    def work(size: int) -> tuple[float, int, int]:
        batches = evaluation_batches(
            examples,
            batch_size=size,
            pad_token_id=request.model.ensure_tokenizer().pad_token_id,
            packing_length=packing,
        )
        if predictions is None:
            return *strategy.evaluate(batches), len(batches)
        with predictions.collect():
            return *strategy.evaluate(batches), len(batches)

    try:
        positions = path is not None or takes_positions(inner, precision.autocast)
        if path is None and packing is not None:
            validate_packing(inner, request.model.model_name, positions=positions)
        strategy.prepare(module, loss_of(module, path, predictions, positions=positions))
        total, tokens, batches = with_smaller_batches(work, config.training.batch_size, _say_halved)
    finally:
        if path is not None:
            path.close()
        random_state.restore()
    row: dict[str, Any] = {"eval_tokens": tokens}
    row |= text_metrics(total, tokens, sum(item.characters for item in examples) or None)
    if predictions is not None:
        row |= predictions.metrics(strategy, batches)
    return row


def _say_halved(size: int, _: str) -> None:
    warn(
        f"評価でメモリーが足りないため、評価のバッチを {size} 行にします。",
        f"out of memory in the evaluation: its batch becomes {size} rows.",
    )
