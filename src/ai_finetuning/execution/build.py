"""From a plan to a run: weights, adapter, strategy, optimizer and loop, ready for the first step."""

from __future__ import annotations

import contextlib
import inspect
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.answers import AnswerRows
from ..data.loader import evaluation_batches
from ..engine.checkpoint.store import CheckpointStore
from ..engine.loss import Base, make_document_loss, make_loss
from ..engine.optimizer import NamedParameters, build_optimizer
from ..engine.predictions import Collects, PredictionSlot
from ..engine.prefetch import Prefetched
from ..engine.rng import seed_everything
from ..engine.state import Evaluation, Run
from ..engine.train_state import TrainState
from ..errors import Reason
from ..kernels.choice import chosen_products
from ..kernels.lora import why_not_one_operation
from ..kernels.products import LABELS, TORCH, products_of
from ..messages import notice, warn
from ..models import fused
from ..models._upstream import attention_name
from ..models.activation_checkpointing import enable_activation_checkpointing
from ..models.adapters import (
    add_lora,
    continue_adapter,
    embedding_weights,
    target_modules,
    trainable_parameters,
    without_adapter,
    without_input_casts,
)
from ..models.documents import VarlenForward, select_forward_path, takes_positions
from ..models.lora_forward import lighten
from ..models.parts import turn_of, unwrapped
from ..models.placement import spread
from ..models.plans import tensor_plan
from ..models.special_tokens import grow_embedding, note_special_ids
from ..parallel.batch import LossFunction
from ..parallel.build import build_strategy
from ..parallel.processes import launched
from ..parallel.strategy import Strategy
from ..planner import memory
from ..planner.phases import Phases, mark_phases, marked
from ..system.collector import as_usual
from ..system.cores import physical_cores, threads_are_chosen
from ..system.gpu import dtype_name, free_memory_bytes
from .base_weights import load_base
from .derived import Derived, kernels_of, threads_of, validate_kernels, validate_products
from .fingerprint import validate_same_weights, weights_mark
from .packing_check import validate_packing
from .predicting import predictions_for
from .preference import build_preference, without_dropout
from .resolve import RunPlan


@dataclass(frozen=True)
class Built:
    """A run that can begin.

    Attributes:
        run: what the loop works with.
        model: the module that trains.
        path: how a step computes documents without padding; None for padded rows.
        save_dtype: of a full model on disk.
        derived: the plan's, with what the built model has added to it.
        slot: what collects other predictions than those of an evaluation, of a model whose parts lie in several processes.
        answers: how training and evaluation rows of pairs, or marked answers, become batches.
    """

    run: Run
    model: nn.Module
    path: VarlenForward | None
    save_dtype: torch.dtype
    derived: Derived
    slot: PredictionSlot | None = None
    answers: tuple[AnswerRows, AnswerRows] | None = None


def build(plan: RunPlan, store: CheckpointStore, metrics_path: Path | None, phases: Phases | None = None) -> Built:
    """Loads the weights and builds the run; the user's model object does not change.

    Args:
        metrics_path: None writes no metrics.
        phases: told of the phases of every step; None where nobody asks.

    Raises:
        ToolkitError: the weights cannot be loaded, or cannot be trained as planned.
    """
    as_usual()
    strategy = _strategy(plan)
    threads = _threads(plan, strategy)
    model, fingerprint, dtype = _load(plan, strategy)
    if not plan.request.full:
        validate_same_weights(strategy.gather(fingerprint))
    attention = attention_name(unwrapped(model))  # before the step's own way of attention takes its place
    with (
        contextlib.nullcontext()
        if strategy.weight_placement is None
        else strategy.weight_placement.layer_offload(model)
    ):
        path, positions = _documents(plan, model, strategy)  # tried on the device, although the model is not cut yet
    evaluation_rows = None if plan.request.config.objective == "sft" else AnswerRows()
    evaluation = _evaluation(plan, evaluation_rows) if plan.data.eval_data else None
    predictions: Collects | None = evaluation.predictions if evaluation is not None else None
    slot = PredictionSlot(evaluation.predictions) if evaluation is not None and plan.parallel.in_parts else None
    loss = loss_of(model, path, slot or predictions, positions=positions, base=_base(plan, model))
    preference, answers = None, None
    if evaluation_rows is not None:
        preference, training_rows = build_preference(plan, path, loss, evaluation_rows, positions=positions)
        loss, answers = preference, (training_rows, evaluation_rows)
    if phases is not None:
        mark_phases(phases, model)
        loss = marked(phases, loss)
    strategy.prepare(model, loss)
    run = _run(plan, store, metrics_path, model, path, strategy, evaluation)
    if phases is not None:
        run.optimizer.register_step_pre_hook(lambda *_: phases.at("optimizer"))
    run.preference = preference
    run.fingerprint = plan.fingerprint | {"weights": fingerprint}
    derived = replace(_derived(plan, model, path, attention), threads=threads)
    run.derived = asdict(derived)
    return Built(run, model, path, dtype, derived, slot, answers)


def _strategy(plan: RunPlan) -> Strategy:
    precision = plan.precision
    return build_strategy(
        plan.parallel,
        device=plan.device_map or plan.device,
        autocast=precision.autocast,
        scaler=precision.scaler,
        use_accelerate=plan.request.use_accelerate,
        fp32_master_weights=plan.request.full,
        plan=tensor_plan,
        max_grad_norm=plan.request.config.training.max_grad_norm,
    )


def _load(plan: RunPlan, strategy: Strategy) -> tuple[nn.Module, str, torch.dtype]:
    """The base, as the method needs it, with its adapter; a mark of its weights; the dtype to save it in."""
    request = plan.request
    seed_everything(request.config.training.runtime.seed)
    cut = strategy.weight_placement is not None
    placement = strategy.placement(quantized=request.bits is not None)
    model, dtype = load_base(plan, placement, as_stored=cut)
    if plan.device_map is not None:
        spread(model, plan.device_map)
    fingerprint = weights_mark(model)
    if request.config.model.extra_tokens and plan.shape.vocabulary > model.get_input_embeddings().weight.shape[0]:
        grow_embedding(model, plan.shape.vocabulary)
    note_special_ids(model, plan.tokenizer, request.config.model)
    if request.full:
        model.requires_grad_(True)
        if not cut:
            model.float()  # the master weights of mixed precision (arXiv:1710.03740)
    else:
        model = _with_adapter(plan, model)
        _lighten(plan, model)
    if plan.derived.gradient_checkpointing:
        enable_activation_checkpointing(unwrapped(model))
    if plan.parallel.sizes.dp > 1:
        # Different dropout on different rows; the main process continues as one alone would.
        data_rank, _ = plan.parallel.data_place(launched().rank)
        if data_rank:
            torch.manual_seed(request.config.training.runtime.seed + data_rank)
    if request.config.objective != "sft":
        without_dropout(model, told=0.0 if request.full else request.config.lora.lora_dropout)
    trains, everything = trainable_parameters(model)
    notice(
        f"学習する重み {trains:,} / {everything:,}（{trains / everything:.2%}）",
        f"{trains:,} of {everything:,} parameters are trained ({trains / everything:.2%})",
    )
    return model, fingerprint, dtype


def _lighten(plan: RunPlan, model: nn.Module) -> None:
    """Less traffic in layers with an adapter; on a CPU every bit stays."""
    dtype = plan.precision.autocast
    if plan.device.type != "cuda" or dtype is None:
        lighten(model, one_operation=False)
        return
    reason = why_not_one_operation(dtype, plan.device)
    lighten(model, one_operation=reason is None)
    without_input_casts(model)
    notice(
        f"LoRA 層: {'1 つの演算' if reason is None else f'PEFT のまま（{reason.ja}）'}",
        f"LoRA layers: {'one operation each' if reason is None else f'as PEFT computes them ({reason.en})'}",
    )


def _with_adapter(plan: RunPlan, model: nn.Module) -> Any:
    lora = plan.request.config.lora
    if lora.adapter is not None:
        return continue_adapter(model, lora.adapter, dropout=_dropout(plan))
    return new_adapter(plan, model)


def _dropout(plan: RunPlan) -> float:
    """Of adapters; none where answers are compared."""
    config = plan.request.config
    return config.lora.lora_dropout if config.objective == "sft" else 0.0


def new_adapter(plan: RunPlan, model: nn.Module) -> Any:
    """A fresh adapter on a model, as the settings say."""
    lora = plan.request.config.lora
    targets = lora.target_modules if lora.target_modules is not None else plan.taken.get("target_modules")
    return add_lora(
        model,
        r=lora.r,
        alpha=lora.lora_alpha,
        dropout=_dropout(plan),
        target_modules=targets,
        bias=lora.bias,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        modules_to_save=lora.modules_to_save,
        target_parameters=lora.target_parameters,
    )


def _derived(plan: RunPlan, model: nn.Module, path: VarlenForward | None, attention: str | None) -> Derived:
    """What was decided for the user, with what only the built model tells."""
    inner = unwrapped(model)
    full = plan.request.full
    return replace(
        plan.derived,
        dtype=None if full else dtype_name(next(inner.parameters()).dtype),
        attention=attention,
        kernels=path.name if path is not None else "plain",
        products=products_of(path.cast if path is not None else None).name,
        target_modules=None if full else target_modules(model),
    )


def _run(
    plan: RunPlan,
    store: CheckpointStore,
    metrics_path: Path | None,
    model: nn.Module,
    path: VarlenForward | None,
    strategy: Strategy,
    evaluation: Evaluation | None,
) -> Run:
    training = plan.request.config.training
    optimizer = optimizer_of(plan, strategy.named_parameters(model), model)
    strategy.attach(optimizer)
    strategy.offload(plan.offload)
    if path is not None:
        path.watch(optimizer)
    estimate = plan.summary.memory.text()
    return Run(
        model=model,
        strategy=strategy,
        loader=Prefetched(plan.loader, plan.device) if plan.device.type == "cuda" else plan.loader,
        optimizer=optimizer,
        state=TrainState(micro_batch_size=plan.derived.batch_size),
        store=store,
        metrics_path=metrics_path if strategy.is_main else None,
        total_steps=plan.summary.total_steps,
        schedule=plan.schedule,
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.logging_steps,
        eval_steps=plan.derived.eval_steps or training.eval_steps,
        save_steps=training.save_steps,
        evals_per_epoch=training.evals_per_epoch,
        saves_per_epoch=training.saves_per_epoch,
        save_only_model=training.save_only_model,
        evaluation=evaluation,
        patience=training.runtime.early_stopping_patience,
        threshold=training.runtime.early_stopping_threshold,
        faults=store.faults,
        retry_smaller=plan.parallel.processes == 1,
        save_in_background=_saves_in_background(plan),
        memory_hint_ja=f"見積もり: {estimate}。data.max_length を下げるか、QLoRA か gradient_checkpointing を使ってください。",
        memory_hint_en=f"Estimate: {estimate}. Lower data.max_length, or use QLoRA or gradient_checkpointing.",
    )


def optimizer_of(plan: RunPlan, named: NamedParameters, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a plan over (name, weight) pairs of a model."""
    training = plan.request.config.training
    options = training.optimizer
    return build_optimizer(
        named,
        name=options.name,
        learning_rate=training.learning_rate,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        lora_plus_ratio=options.lora_plus_ratio,
        embeddings=embedding_weights(unwrapped(model)),
    )


def _evaluation(plan: RunPlan, answers: AnswerRows | None) -> Evaluation:
    def batches(size: int, *, other: bool = False) -> Any:
        return evaluation_batches(
            plan.data.eval_data,
            batch_size=size,
            pad_token_id=plan.tokenizer.pad_token_id,
            packing_length=plan.packing_tokens,
            answers=answers,
            other=other,
        )

    predictions = predictions_for(plan.request.hooks, plan.data.eval_data, plan.packing_tokens)
    others = None if answers is None else partial(batches, other=True)
    return Evaluation(batches, plan.data.eval_characters, predictions, others)


def _documents(plan: RunPlan, model: nn.Module, strategy: Strategy) -> tuple[VarlenForward | None, bool]:
    """The path of the training step, the same in all processes, with one line that names it; None for padded rows. And
    whether those are given positions.
    """
    kernels = kernels_of(
        plan.request.config.training.runtime.kernels,
        plan.taken,
        resumed=_goes_on(plan),
        fp32=plan.precision.autocast is None,
    )
    if kernels == "auto" and not plan.parallel.whole_blocks:
        kernels = "portable"  # fused blocks read weights of modules that are gathered or cut around them
    products = _products(plan, model, strategy, kernels)
    warn_of_turn(unwrapped(model).config, plan.data.longest)
    path, reason = _path(plan, model, kernels, products)
    name = path.name if path is not None else "plain"
    if kernels == "auto" and len(set(strategy.gather(name))) > 1:  # a machine without a compiler among others
        if path is not None:
            path.close()
        path, reason = _path(plan, model, "portable", TORCH)
        name = path.name if path is not None else "plain"
    validate_kernels(kernels, plan.taken, name, reason)
    chosen = path.chosen if path is not None else None
    if path is not None and (own := LABELS[products_of(path.cast).name]) is not None:
        chosen = own
    notice(
        f"計算方法: {name}" + (f", {chosen.ja}" if chosen else "") + (f"（{reason.ja}）" if reason else ""),
        f"training step: {name}" + (f", {chosen.en}" if chosen else "") + (f" ({reason.en})" if reason else ""),
    )
    if path is not None:
        return path, True
    positions = takes_positions(unwrapped(model), plan.precision.autocast)
    if plan.packing_tokens is not None:
        validate_packing(unwrapped(model), plan.summary.model, positions=positions)
    return None, positions


def _base(plan: RunPlan, model: nn.Module) -> Base | None:
    """What old rows are held to (`data.replay.distill`): the model without its adapter."""
    weight = plan.request.config.data.replay.distill
    return None if weight is None else Base(weight, lambda: without_adapter(model))


def _goes_on(plan: RunPlan) -> bool:
    """Whether the run goes on with steps of an earlier one of ours."""
    point = plan.resume
    return point is not None and point.foreign is None and (point.checkpoint or point.finished) is not None


def _products(plan: RunPlan, model: nn.Module, strategy: Strategy, kernels: str) -> str:
    """Whose matrix products the fused blocks take, the same in all processes: as a resumed run had them, else the faster
    ones.

    Raises:
        ConfigError: those of the resumed run are not here.
    """
    inner = unwrapped(model)
    compute = fused.computed_in(inner, plan.precision.autocast)
    if kernels != "auto" or plan.device.type != "cpu" or compute is None:
        return TORCH
    had = plan.taken.get("products") or (TORCH if _goes_on(plan) else None)
    if had is not None:
        validate_products(had, compute)
        return str(had)
    serves = fused.why_not(inner, plan.device, compute=compute) is None
    obtained = chosen_products(fused.linear_shapes(inner), fused.first_attention(inner), compute) if serves else TORCH
    found = strategy.gather(obtained)
    return str(found[0]) if len(set(found)) == 1 else TORCH


def _threads(plan: RunPlan, strategy: Strategy) -> int | None:
    """Sets the threads that a CPU computes with, before anything is computed; the same in all processes. None on other
    devices.

    Raises:
        ConfigError: the resumed run had more than there are cores.
    """
    if plan.device.type != "cpu":
        return None
    had = plan.taken.get("threads")
    # What each of them has is judged in each of them, so that all go on, or none.
    mine = (torch.get_num_threads(), physical_cores(), threads_are_chosen())
    facts = dict.fromkeys(map(tuple, strategy.gather(mine)))
    threads = min(threads_of(had, now, cores, chosen=chosen) for now, cores, chosen in facts)
    torch.set_num_threads(threads)
    return threads


def warn_of_turn(config: Any, longest: int | None) -> None:
    """Says so where the rows of a step change what the model makes of each other's positions: long ones beside short ones,
    in transformers as here.
    """
    turn = turn_of(config)
    if turn is None or longest is None or longest <= turn[0]:
        return
    tokens, kind = turn
    warn(
        f"このモデルは、{tokens} トークンを超える行があるステップでは、一緒に計算する短い行の位置も長い文用（{kind}）に変えます。短い質問には短い文用のまま答えるため、"
        f"data.max_length={tokens} にするか、長い行だけで学習してください（最長 {longest} トークン）。",
        f"this model turns the positions of all rows of a step as those of long texts ({kind}) where one of them has more "
        f"than {tokens} tokens, and answers short questions by those of short ones: set data.max_length={tokens}, or train "
        f"on long rows only (the longest has {longest} tokens).",
    )


def _path(plan: RunPlan, model: nn.Module, kernels: str, products: str) -> tuple[VarlenForward | None, Reason | None]:
    return select_forward_path(
        unwrapped(model),
        plan.device,
        autocast=plan.precision.autocast,
        kernels=kernels,
        longest=plan.data.longest,
        layer_kernels=plan.parallel.sizes.pp == plan.parallel.sizes.tp == 1 and plan.device_map is None,
        products=products,
    )


def loss_of(
    model: nn.Module,
    path: VarlenForward | None,
    predictions: Collects | None = None,
    *,
    positions: bool = True,
    base: Base | None = None,
) -> LossFunction:
    """The loss on a path of the step; `predictions` are collected beside it in an evaluation, padded rows are given
    `positions` or not, and rows that say so are held to the `base`.
    """
    if path is not None:
        return make_document_loss(path, predictions, base)
    keeps = "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters
    return make_loss(logits_to_keep=keeps, predictions=predictions, positions=positions, base=base)


def copy_fits(plan: RunPlan) -> bool:
    """Whether the host has memory for the copy that checkpoints are written from while training continues."""
    summary = plan.summary
    copy = memory.checkpoint_bytes(summary.trainable)
    free = summary.free_memory_bytes - summary.memory.total
    if plan.device.type == "cuda":
        free = free_memory_bytes(torch.device("cpu"))
        if plan.offload == "optimizer":  # its state will be there as well
            free -= memory.checkpoint_bytes(summary.trainable) - memory.checkpoint_bytes(summary.trainable, 0)
    return copy <= free


def _saves_in_background(plan: RunPlan) -> bool:
    """The same; where it has not, a line says so."""
    fits = copy_fits(plan)
    if not fits:
        size = f"{memory.checkpoint_bytes(plan.summary.trainable) / 2**30:.2f} GiB"
        notice(
            f"メモリーの空きが少ないため、チェックポイントの書き込み中（{size}）は学習を待たせます。",
            f"little free memory: training pauses while a checkpoint ({size}) is written.",
        )
    return fits
