"""The one place where parts meet: configuration, data, model, strategy, engine, folder."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..config.section import with_values
from ..config.sections import ScheduleConfig
from ..data.loader import evaluation_batches
from ..engine.checkpoint import LoadedCheckpoint, verify
from ..engine.checkpoint import load as load_checkpoint
from ..engine.faults import Faults
from ..engine.loop import fit, last_checkpoint, load
from ..engine.loss import make_document_loss, make_loss
from ..engine.metrics import read_metrics
from ..engine.optimizer import build_optimizer
from ..engine.rng import seed_everything
from ..engine.schedule import Schedule
from ..engine.state import Evaluation, Run, TrainState
from ..hardware.checkpointing import enable_activation_checkpointing
from ..hardware.cores import use_physical_cores
from ..hardware.gpu import free_memory_bytes, peak_memory_bytes
from ..models.adapters import add_lora, embedding_weights, trainable_parameters
from ..models.documents import DocumentPath, open_documents
from ..models.loading import weight_marks
from ..models.placement import spread
from ..models.plans import tensor_plan
from ..notices import notice, warn
from ..parallel.batch import LossFunction
from ..parallel.choose import Choice, choose, warn_of_idle_ranks
from ..parallel.processes import Peers, all_peers, launched, process_group, wait_for
from ..parallel.strategy import Strategy
from ..parallel.watchdog import Watchdog
from ..planner import memory
from ..planner.plan import Plan
from . import base, resume, saving
from .isolation import refuse_leaking_attention
from .launch import run_processes, wanted_processes
from .output_folder import OutputFolder
from .preparation import Job, Prepared, check, device_of, prepare_job, resolve_auto
from .progress import progress, speaking_main_process
from .trackers import Tracker


@dataclass
class Result:
    """What a run gave.

    Attributes:
        model: the trained module, in eval mode.
        folder: where it is saved.
        state: where the loop ended; None where a completed run was only loaded.
        history: rows of metrics.jsonl.
        seconds: of the loop.
        peak_memory_bytes: of the process or the GPU.
    """

    model: nn.Module
    folder: Path
    state: TrainState | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    peak_memory_bytes: int = 0


def plan_job(job: Job) -> tuple[Plan, list[str]]:
    """The plan and the lines about the data; nothing is written."""
    job = resolve_auto(job)
    processes = wanted_processes(job)
    choice = check(job, processes if processes > 1 else None)
    data = with_values(job.config.data, cache=False)
    prepared = prepare_job(replace(job, config=with_values(job.config, data=data)), choice)
    return prepared.plan, prepared.data.lines


def run_job(job: Job, faults: Faults | None = None) -> Result:
    """Trains, saves and returns the model.

    Args:
        faults: to inject; None: those that the environment plans.

    Raises:
        ToolkitError: with reason and way out; see errors.py for the kinds.
    """
    job = resolve_auto(job)
    processes = wanted_processes(job)
    choice = check(job, processes if processes > 1 else None)
    if processes > 1:
        return _run_in_processes(job, processes)
    faults = Faults.from_environment() if faults is None else faults
    if choice.processes == 1:
        return _run_here(job, choice, Peers(), faults)
    device = device_of(job, choice)
    with process_group(device), speaking_main_process():
        return _run_here(job, choice, all_peers(), faults)


def _run_in_processes(job: Job, processes: int) -> Result:
    """The run in processes that this one starts; its model, loaded from where they saved it."""
    began = time.perf_counter()
    run_processes(job, processes)
    folder = Path(job.config.training.output_dir)
    job.model.model = None
    model = saving.load_saved(job, folder, in_fp32=not job.config.training.fp16)
    return Result(model, folder, None, read_metrics(folder / "metrics.jsonl"), time.perf_counter() - began)


def _run_here(job: Job, choice: Choice, peers: Peers, faults: Faults) -> Result:
    """One process's part of a run."""
    if peers.size == 1:
        use_physical_cores()
    training, options = job.config.training, job.config.training.checkpoint
    with OutputFolder(training.output_dir, keep=options.save_total_limit, peers=peers, faults=faults) as folder:
        start = resume.find(folder, options)
        prepared = _prepare_in_turn(job, choice, peers)
        if start is not None:
            differs = resume.refuse_differences(start.fingerprint, prepared.fingerprint, allowed=options.allow_changed)
            if start.completed and not differs:
                notice(
                    f"{folder.path} の実行は完了しているので、そのモデルを返します。",
                    f"the run in {folder.path} is complete; returning its model.",
                )
                return Result(
                    saving.load_saved(job, folder.path, in_fp32=prepared.precision.name == "fp32"),
                    folder.path,
                    history=read_metrics(folder.path / "metrics.jsonl"),
                )
        if peers.is_main:
            folder.refuse_too_little_space(prepared.plan.disk_bytes)
        _warn_of_memory(prepared.plan)
        warn_of_idle_ranks(choice, training.batch_size * training.gradient_accumulation_steps)
        for line in prepared.data.lines:
            notice(line, line)
        return _train(job, prepared, folder, start, peers)


def _prepare_in_turn(job: Job, choice: Choice, peers: Peers) -> Prepared:
    """The main process tokenizes first; the others find its cache."""
    prepared = prepare_job(job, choice) if peers.is_main else None
    wait_for(peers)
    return prepared or prepare_job(job, choice)


def _warn_of_memory(plan: Plan) -> None:
    """The estimate is a formula: it warns, the run decides."""
    if plan.fits:
        return
    need, free = plan.memory.text(), f"{plan.free_memory_bytes / 2**30:.2f} GiB"
    warn(
        f"メモリーが足りない見込みです（見積もり {need}、空き {free}）。data.max_length か batch_size を下げるか、method: qlora を使ってください。",
        f"memory may not suffice (estimate {need}, free {free}); lower data.max_length or batch_size, or use "
        "method: qlora.",
    )


def _train(job: Job, prepared: Prepared, folder: OutputFolder, start: resume.Start | None, peers: Peers) -> Result:
    config, training = job.config, job.config.training
    strategy = _strategy(job, prepared)
    model, marks, dtype = _model(job, prepared, strategy)
    with _runnable(model, strategy):
        path = _documents(job, prepared, model)
    run = _run(job, prepared, folder, model, path, strategy)
    run.fingerprint = prepared.fingerprint | {"weights": marks}
    loaded = None
    if start is not None and start.checkpoint is not None:
        loaded = load_checkpoint(start.checkpoint, run.strategy.layouts)
    if loaded is not None:
        resume.refuse_differences(
            loaded.state["fingerprint"], run.fingerprint, allowed=training.checkpoint.allow_changed
        )
    resolved = saving.resolved_config(config, prepared.plan)
    folder.begin(
        resuming=start is not None and start.inside,
        files=saving.descriptions(resolved),
        fingerprint=prepared.fingerprint,
        total_steps=prepared.plan.total_steps,
    )
    if peers.is_main:
        run.callbacks = [
            *([progress(training.logging_steps)] if training.runtime.progress else []),
            *(Tracker(name, folder.path / "trackers", folder.path.name) for name in training.runtime.report_to),
        ]
    _restore(run, loaded, start, prepared)
    notice(prepared.precision.reason_ja, prepared.precision.reason_en)
    began = time.perf_counter()
    with contextlib.closing(run.strategy):  # after the model is saved, which may take a last checkpoint
        try:
            with _watched(job, run, folder):
                state = fit(run)
        except BaseException as error:
            with contextlib.suppress(OSError):
                folder.write_run(status="stopped", reason=f"{type(error).__name__}: {str(error)[:300]}")
            raise
        finally:
            if path is not None:
                path.close()
        result = Result(
            model, folder.path, state, seconds=time.perf_counter() - began, peak_memory_bytes=_peak(prepared.device)
        )
        _finish(job, prepared, folder, run, result, dtype)
    wait_for(peers)
    return result


def _watched(job: Job, run: Run, folder: OutputFolder) -> contextlib.AbstractContextManager[Any]:
    """A watchdog where there are several processes."""
    strategy = run.strategy
    if launched().size == 1:
        return contextlib.nullcontext()
    return Watchdog(lambda: strategy.exchanges, timeout_seconds=job.config.parallel.timeout_seconds, folder=folder.path)


def _finish(job: Job, prepared: Prepared, folder: OutputFolder, run: Run, result: Result, dtype: torch.dtype) -> None:
    """Saves the model, the best or the last; where its parts lie in several processes, out of a checkpoint."""
    best = job.config.training.checkpoint.load_best and run.state.best_step not in (None, run.state.step)
    checkpoint = folder.store.folder / f"checkpoint-{run.state.best_step}"
    if best:
        best = _back_to_best(run, checkpoint)
    if not prepared.choice.in_parts:
        if run.strategy.is_main:
            saving.finish(job, prepared, folder, result, dtype)
        return
    if not best:
        checkpoint = last_checkpoint(run)
    if run.strategy.is_main:
        saving.finish(job, prepared, folder, result, dtype, saving.export_of(job, run.model, checkpoint, dtype))
        job.model.model = None
        result.model = saving.load_saved(job, folder.path, in_fp32=prepared.precision.name == "fp32")


def _back_to_best(run: Run, checkpoint: Path) -> bool:
    """Puts the weights of the best evaluation back; where its checkpoint could not be written, the last ones stay."""
    problems = verify(checkpoint)
    if problems:
        warn(
            f"最良の {checkpoint.name} が使えないため（{problems[0]}）、最後の重みを返します。",
            f"the best one, {checkpoint.name}, cannot be used ({problems[0]}); the last weights are returned.",
        )
        return False
    best = load_checkpoint(checkpoint, run.strategy.layouts).tensors["model"]
    run.strategy.load_tensors(run.model, run.optimizer, {"model": best})
    notice(
        f"最良のステップ {run.state.best_step} の重みに戻しました。",
        f"back to the best weights, of step {run.state.best_step}.",
    )
    return True


def _unwrapped(model: nn.Module) -> Any:
    """The transformers model inside an adapter."""
    get_base = getattr(model, "get_base_model", None)
    return get_base() if get_base is not None else model


def _restore(run: Run, loaded: LoadedCheckpoint | None, start: resume.Start | None, prepared: Prepared) -> None:
    if loaded is not None:
        load(run, loaded.tensors, loaded.state)
        resume.fit_position(run.state, loaded.state["fingerprint"], run.fingerprint, len(run.loader))
        notice(f"ステップ {run.state.step} から再開します。", f"resuming from step {run.state.step}.")
    elif start is not None and start.foreign is not None:
        resume.load_foreign(run, start.foreign)


def _strategy(job: Job, prepared: Prepared) -> Strategy:
    precision = prepared.precision
    return choose(
        prepared.choice,
        device=prepared.device_map or prepared.device,
        autocast=precision.autocast,
        scaler=precision.scaler,
        use_accelerate=job.use_accelerate,
        masters=job.full,
        plan=tensor_plan,
        max_grad_norm=job.config.training.max_grad_norm,
    )


def _runnable(model: nn.Module, strategy: Strategy) -> contextlib.AbstractContextManager[None]:
    """Inside, the model can be tried on the device, although it is not cut yet."""
    return contextlib.nullcontext() if strategy.destination is None else strategy.destination.visiting(model)


def _model(job: Job, prepared: Prepared, strategy: Strategy) -> tuple[nn.Module, str, torch.dtype]:
    """The base, as the method needs it, with its adapter; a mark of its weights; the dtype to save it in."""
    config, training = job.config, job.config.training
    seed_everything(training.runtime.seed)
    for name, place in strategy.placement(quantized=job.bits is not None).items():
        setattr(job.model, name, place)
    cut = strategy.destination is not None
    model, dtype = base.load_base(job.model, config, in_fp32=prepared.precision.name == "fp32", as_stored=cut)
    if prepared.device_map is not None:
        spread(model, prepared.device_map)
    marks = hashlib.sha256(json.dumps(weight_marks(model)).encode()).hexdigest()
    if job.full:
        model.requires_grad_(True)
        if not cut:
            model.float()  # the master weights of mixed precision (arXiv:1710.03740)
    else:
        lora = config.lora
        model = add_lora(
            model,
            r=lora.r,
            alpha=lora.lora_alpha,
            dropout=lora.lora_dropout,
            target_modules=lora.target_modules,
            bias=lora.bias,
            use_rslora=lora.use_rslora,
            use_dora=lora.use_dora,
            modules_to_save=lora.modules_to_save,
        )
    if prepared.plan.gradient_checkpointing:
        enable_activation_checkpointing(_unwrapped(model))
    if prepared.choice.sizes.dp > 1:
        # Different dropout on different rows; the main process goes on as one alone would.
        data_rank, _ = prepared.choice.data_place(launched().rank)
        if data_rank:
            torch.manual_seed(training.runtime.seed + data_rank)
    trains, everything = trainable_parameters(model)
    notice(
        f"学習する重み {trains:,} / {everything:,}（{trains / everything:.2%}）",
        f"{trains:,} of {everything:,} parameters train ({trains / everything:.2%})",
    )
    return model, marks, dtype


def _run(
    job: Job, prepared: Prepared, folder: OutputFolder, model: nn.Module, path: DocumentPath | None, strategy: Strategy
) -> Run:
    training = job.config.training
    plan = prepared.plan
    strategy.prepare(model, _loss(model, path))
    options = training.optimizer
    optimizer = build_optimizer(
        strategy.named_parameters(model),
        name=options.name,
        learning_rate=training.learning_rate,
        betas=options.betas,
        eps=options.eps,
        weight_decay=options.weight_decay,
        lora_plus_ratio=options.lora_plus_ratio,
        embeddings=embedding_weights(_unwrapped(model)),
    )
    strategy.attach(optimizer)
    if path is not None:
        path.watch(optimizer)
    held_out, data = prepared.data.held_out, job.config.data
    packing_length = max(data.max_length, prepared.data.longest) if data.packing else None

    def batches(size: int) -> Any:
        return evaluation_batches(
            held_out, batch_size=size, pad_token_id=prepared.tokenizer.pad_token_id, packing_length=packing_length
        )

    return Run(
        model=model,
        strategy=strategy,
        loader=prepared.loader,
        optimizer=optimizer,
        state=TrainState(micro_batch_size=training.batch_size),
        store=folder.store,
        metrics_path=folder.path / "metrics.jsonl" if strategy.is_main else None,
        total_steps=plan.total_steps,
        schedule=_schedule(training.schedule, plan.warmup_steps),
        max_grad_norm=training.max_grad_norm,
        logging_steps=training.logging_steps,
        eval_steps=training.eval_steps,
        save_steps=training.save_steps,
        keep_best=training.checkpoint.load_best and bool(held_out),
        evaluation=Evaluation(batches, prepared.data.held_out_characters) if held_out else None,
        patience=training.runtime.early_stopping_patience,
        threshold=training.runtime.early_stopping_threshold,
        faults=folder.faults,
        retry_smaller=prepared.choice.processes == 1,
        save_in_background=_copy_fits(plan, prepared.device),
        memory_hint_ja=f"見積もり: {plan.memory.text()}。data.max_length を下げるか、QLoRA か gradient_checkpointing を使ってください。",
        memory_hint_en=f"The estimate: {plan.memory.text()}. Lower data.max_length, or use QLoRA or gradient_checkpointing.",
    )


def _documents(job: Job, prepared: Prepared, model: nn.Module) -> DocumentPath | None:
    """The path of the training step, said in one line; None for padded rows."""
    kernels = job.config.training.runtime.kernels
    if kernels == "auto" and not prepared.choice.whole_blocks:
        kernels = "portable"  # fused blocks read weights of modules that are gathered or cut around them
    path, reason = open_documents(
        _unwrapped(model), prepared.device, autocast=prepared.precision.autocast, kernels=kernels
    )
    name = path.name if path is not None else "plain"
    because = f" ({reason})" if reason else ""
    notice(f"学習ステップ: {name}{because}", f"training step: {name}{because}")
    if path is None and job.config.data.packing:
        refuse_leaking_attention(_unwrapped(model), prepared.plan.model)
    return path


def _loss(model: nn.Module, path: DocumentPath | None) -> LossFunction:
    if path is not None:
        return make_document_loss(path)
    return make_loss(logits_to_keep="logits_to_keep" in inspect.signature(_unwrapped(model).forward).parameters)


def _schedule(options: ScheduleConfig, warmup: int) -> Schedule:
    return Schedule(options.name, warmup, options.min_lr_ratio, options.decay_ratio)


def _copy_fits(plan: Plan, device: torch.device) -> bool:
    """Whether the host has memory for the copy that checkpoints are written from while training goes on."""
    copy = memory.checkpoint_bytes(plan.trainable)
    free = plan.free_memory_bytes - plan.memory.total
    if device.type == "cuda":
        free = free_memory_bytes(torch.device("cpu"))
    if copy > free:
        notice(
            f"メモリーの空きが少ないため、チェックポイントの書き込み中（{copy / 2**30:.2f} GiB）は学習を待たせます。",
            f"little memory is free: training waits while a checkpoint ({copy / 2**30:.2f} GiB) is written.",
        )
    return copy <= free


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return max(int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count()))
    return peak_memory_bytes()
