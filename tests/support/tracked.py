"""Training steps as a run makes them, on small real models, simulated and for real under the same tracker."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from ai_finetuning.data.collate import Batch, collate
from ai_finetuning.data.example import Example
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.execution.build import loss_of
from ai_finetuning.kernels.attention import forget_masks
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora, embedding_weights
from ai_finetuning.models.documents import assumed_forward_path
from ai_finetuning.models.parts import unwrapped
from ai_finetuning.models.placement import spread
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.models.quantized import held_tensors
from ai_finetuning.parallel.build import build_strategy
from ai_finetuning.planner.memory import Workload, estimate
from ai_finetuning.planner.shape import shape_of
from ai_finetuning.planner.simulate import Job, prepare
from ai_finetuning.planner.tracker import HOST, Tracker
from tests.support.virtual import Places

CPU = torch.device("cpu")


def batch(rows: int, tokens: int, *, documents: int = 1, packed: bool = False, short: int = 0) -> Batch:
    """Rows of documents of one length; `short` cuts the last row."""
    ids = np.full(tokens // documents, 7, dtype=np.int64)
    made = [[Example(ids, ids) for _ in range(documents)] for _ in range(rows)]
    made[-1][-1] = Example(ids[short:], ids[short:])
    return collate(made, pad_token_id=0, packed=packed)


def optimizer_of(named: Any, model: Any, *, name: str = "adamw") -> torch.optim.Optimizer:
    return build_optimizer(named, name=name, learning_rate=1e-4, embeddings=embedding_weights(unwrapped(model)))


def job(
    module: nn.Module,
    *,
    full: bool = False,
    dropout: float = 0.0,
    optimizer: str = "adamw",
    bf16: bool = False,
    kernels: str = "auto",
    **others: Any,
) -> Job:
    """A step with LoRA of rank 8 on all linear layers, or of all weights."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    made = Job(
        module=module,
        device=CPU,
        dtype=torch.float32 if full else dtype,
        bits=None,
        autocast=dtype if bf16 else None,
        kernels=kernels,
        adapter=None if full else partial(add_lora, r=8, alpha=16, dropout=dropout),
        loss=loss_of,
        optimizer=partial(optimizer_of, name=optimizer),
    )
    return replace(made, **others)


def real_step(work: Job, group: Sequence[Batch], *, steps: int = 2, places: Places | None = None) -> Tracker:
    """Real steps on the module of a job, as it is loaded; it is changed.

    Args:
        places: of the virtual devices that the job's map names (tests/support/virtual.py); call it inside them.
    """
    forget_masks()  # those of a step before would lie there uncounted
    model: Any = work.module
    model.train()
    if work.device_map is not None:
        spread(model, work.device_map)
    if work.adapter is None:
        model.requires_grad_(True)
        if not work.parallel.in_parts:
            model.float()
    else:
        model = work.adapter(model)
    if work.checkpointing:
        enable_activation_checkpointing(unwrapped(model))
    kernels = "portable" if work.kernels == "auto" and not work.parallel.whole_blocks else work.kernels
    path = assumed_forward_path(unwrapped(model), CPU, autocast=work.autocast, kernels=kernels)
    strategy = build_strategy(
        work.parallel,
        device=work.device_map or CPU,
        autocast=work.autocast,
        scaler=False,
        use_accelerate=False,
        fp32_master_weights=work.adapter is None,
        plan=tensor_plan,
    )
    tracker = Tracker() if places is None else Tracker(device_of=partial(_device_of, places))
    with tracker, contextlib.closing(strategy):
        tracker.hold(held_tensors(model))
        tracker.hold(value for item in group for value in vars(item).values() if isinstance(value, torch.Tensor))
        step = prepare(tracker, model, strategy, work.loss(model, path), work.optimizer, offload=work.offload)
        del model
        if path is not None:
            path.watch(step.optimizer)
        for _ in range(steps):
            step.run(group)
        if places is None:  # from a GPU a copy comes through memory that is pinned, which only a GPU's driver can do
            step.save(work.save_in_background, host=False)
        if work.evaluation:
            step.evaluate(work.evaluation)
    return tracker


def _device_of(places: Places, tensor: torch.Tensor) -> Any:
    device = places.of(tensor)
    return HOST if device == CPU else device.index


def rank_step(rank: int, work: Callable[[], Job], group: Sequence[Batch]) -> dict[str, int]:
    """What a rank of a real group holds by phase (tests/support/ranks.py)."""
    tracker = real_step(work(), group)
    assert not tracker.unknown
    return tracker.by_phase()


def formula(work: Job, group: Sequence[Batch]) -> int:
    """The planner's formula for the same step, without what it adds for libraries."""
    shape, full, gpu = shape_of(work.module), work.adapter is None, work.device.type == "cuda"
    adapter = {} if work.adapter is None else work.adapter.keywords
    load = Workload(
        trainable=shape.parameters if full else shape.lora_parameters(adapter["r"], None),
        bits=work.bits,
        frozen_bytes=work.dtype.itemsize,
        tokens=max(item.input_ids.numel() for item in group),
        compute_bytes=4 if work.autocast is None else 2,
        optimizer_bytes={"adamw": 8, "adamw_8bit": 2, "muon": 4}[work.optimizer.keywords["name"]],
        full=full,
        longest=max(length for item in group for row in item.lengths for length in row),
        adapted=0 if full else shape.adapted_inputs(None),
        dropout=bool(adapter.get("dropout")),
        fused=work.kernels == "fused",
        gpu=gpu,
        documents=work.kernels != "plain",
    )
    told = estimate(shape, load, checkpointing=work.checkpointing)
    return told.total - told.base
