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

from ..config.lora import LoRAConfig
from ..config.run import RunConfig
from ..config.section import typed, with_values
from ..config.sections import ScheduleConfig
from ..data.loader import Loader, evaluation_batches
from ..data.prepare import PreparedData, prepare
from ..data.tokenize import count_live, max_token_id
from ..engine.checkpoint import LoadedCheckpoint, verify
from ..engine.checkpoint import load as load_checkpoint
from ..engine.loop import Evaluation, Run, TrainState, fit, last_checkpoint, load, load_weights
from ..engine.loss import LossFunction, make_document_loss, make_loss
from ..engine.metrics import read_metrics
from ..engine.optimizer import build_optimizer
from ..engine.precision import Precision, resolve_precision
from ..engine.rng import seed_everything
from ..engine.schedule import Schedule, resolve_warmup
from ..errors import ConfigError
from ..hardware.checkpointing import enable_activation_checkpointing
from ..hardware.cores import use_physical_cores
from ..hardware.gpu import free_memory_bytes, get_available_device, peak_memory_bytes
from ..models.adapters import add_lora, embedding_weights, trainable_parameters
from ..models.base_model import BaseModel
from ..models.documents import DocumentPath, open_documents
from ..models.loading import weight_marks
from ..notices import notice, warn
from ..parallel.choose import Choice, check_strategy, choose
from ..parallel.distributed import Distributed
from ..parallel.processes import Peers, all_peers, launched, process_group, wait_for
from ..parallel.watchdog import Watchdog
from ..planner import memory
from ..planner.plan import Plan
from ..planner.shape import ModelShape, read_shape, shape_of
from . import base, resume, saving
from .isolation import refuse_leaking_attention
from .launch import run_processes, wanted_processes
from .output_folder import OutputFolder, free_disk_bytes
from .progress import progress, speaking_main_process
from .trackers import Tracker, require_trackers

# Rates that LoRA papers and recipes use; the documented default of 2e-5 suits full fine-tuning.
USUAL_LORA_RATES = "1e-4 - 3e-4"
# Bytes of optimizer state a trained weight; muon's matrices have one moment, which most weights of a model belong to.
_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 4}


@dataclass
class Job:
    """What a trainer's face hands over.

    Attributes:
        model: the base.
        config: all settings.
        train, held_out: data in any form that data.prepare takes.
        use_accelerate: run the step through Accelerate.
    """

    model: BaseModel
    config: RunConfig
    train: Any
    held_out: Any = None
    use_accelerate: bool = False

    @property
    def full(self) -> bool:
        """Whether all weights train."""
        return self.config.trains_all

    @property
    def bits(self) -> int | None:
        """Bits of the base that is asked for, or None."""
        return base.wanted_bits(self.model, self.config)


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


@dataclass(frozen=True)
class Prepared:
    """What is known before weights are loaded."""

    tokenizer: Any
    data: PreparedData
    loader: Loader
    shape: ModelShape
    plan: Plan
    precision: Precision
    device: torch.device
    fingerprint: dict[str, Any]
    choice: Choice


def check(job: Job, processes: int | None = None) -> Choice:
    """Refuses what needs neither data nor weights to be refused, and says what has no effect; how the run is spread."""
    config = job.config
    parallel = config.parallel
    choice = check_strategy(
        parallel.strategy,
        processes=processes,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
        world_size=config.training.world_size,
        local_rank=config.training.local_rank,
    )
    base.check_method(job.model, config)
    require_trackers(config.training.runtime.report_to)
    if job.train is None:
        raise ConfigError(
            "学習データがありません。train_texts か train_dataset（設定では data.train）を指定してください。",
            "there is no training data; give train_texts or train_dataset (in a configuration: data.train).",
        )
    if config.training.ddp and choice.processes == 1:
        notice(
            "ddp=True ですがプロセスは 1 つなので、通常どおり訓練します。",
            "ddp=True, but there is one process: training as usual.",
        )
    if not job.full and "learning_rate" not in typed(config.training):
        rate = config.training.learning_rate
        notice(
            f"learning_rate は既定の {rate:g} です。LoRA では低めで、通常は {USUAL_LORA_RATES} です。",
            f"learning_rate stands at its default of {rate:g}, which is low for LoRA; {USUAL_LORA_RATES} is usual.",
        )
    return choice


def _device(job: Job, choice: Choice) -> torch.device:
    """Where this process computes: with several, each takes the GPU of its rank on the machine."""
    device = job.model.device or get_available_device()
    if choice.processes > 1 and device.type == "cuda":
        return torch.device("cuda", launched().local_rank)
    return device


def prepare_job(job: Job, choice: Choice) -> Prepared:
    """Tokenizer, data and plan; no weight is read."""
    config, training = job.config, job.config.training
    tokenizer = job.model.ensure_tokenizer()
    data = prepare(job.train, job.held_out, tokenizer, config.data, seed=training.runtime.seed)
    device = _device(job, choice)
    precision = resolve_precision(training.runtime.precision, fp16=training.fp16, device=device)
    rows_per_step = training.batch_size * training.gradient_accumulation_steps
    data_rank, data_size = choice.data_place(launched().rank)
    loader = Loader(
        data.train,
        rows_per_step=rows_per_step,
        seed=training.runtime.seed,
        packing=config.data.packing,
        max_length=max(config.data.max_length, data.longest),
        group_by_length=config.data.group_by_length,
        pad_token_id=tokenizer.pad_token_id,
        data_rank=data_rank,
        data_size=data_size,
    )
    total = training.schedule.max_steps or training.num_epochs * len(loader)
    warmup = resolve_warmup(training.warmup_steps, typed="warmup_steps" in typed(training), total_steps=total)
    module = base.plain_module(job.model)
    trusted = bool(getattr(job.model, "trust_remote_code", False))
    shape = shape_of(module) if module is not None else read_shape(job.model.model_name, trust_remote_code=trusted)
    shape.refuse_misfit(max_token_id=max_token_id([*data.train, *data.held_out]), max_length=data.longest)
    plan = _plan(job, data, loader, shape, precision, device, total, warmup)
    return Prepared(
        tokenizer, data, loader, shape, plan, precision, device, _fingerprint(job, data, plan, precision.name), choice
    )


def _plan(
    job: Job, data: PreparedData, loader: Loader, shape: ModelShape, precision: Precision, device: torch.device,
    total: int, warmup: int,
) -> Plan:  # fmt: skip
    config, training = job.config, job.config.training
    trainable = shape.parameters if job.full else shape.lora_parameters(config.lora.r, _targets(config.lora))
    width = max(config.data.max_length, data.longest) if config.data.packing else data.longest
    compute = 2 if precision.autocast is not None else 4
    moments = _OPTIMIZER_BYTES[training.optimizer.name]
    work = memory.Workload(
        trainable=trainable, bits=job.bits, frozen_bytes=_frozen_bytes(job, compute), tokens=training.batch_size * width,
        compute_bytes=compute, optimizer_bytes=moments, full=job.full,
    )  # fmt: skip
    free = free_memory_bytes(device)
    if job.model.model is not None:
        free += sum(weight.numel() * weight.element_size() for weight in job.model.model.parameters())
    without = memory.estimate(shape, work, checkpointing=False)
    checkpointing = training.gradient_checkpointing
    if "gradient_checkpointing" not in typed(training):
        checkpointing = without.total > 0.8 * free
    model_bytes = shape.parameters * compute if job.full else 4 * trainable
    return Plan(
        model=job.model.model_name, method=config.method, device=str(device), precision=precision.name,
        parameters=shape.parameters, trainable=trainable, rows=len(data.train), eval_rows=len(data.held_out),
        tokens=sum(map(len, data.train)), label_tokens=count_live(data.train),
        rows_per_step=training.batch_size * training.gradient_accumulation_steps, steps_per_epoch=len(loader),
        total_steps=total, warmup_steps=warmup, gradient_checkpointing=checkpointing,
        memory=memory.estimate(shape, work, checkpointing=True) if checkpointing else without, free_memory_bytes=free,
        disk_bytes=memory.disk_bytes(
            trainable, kept=training.checkpoint.save_total_limit, model_bytes=model_bytes, optimizer_bytes=moments
        ),
        free_disk_bytes=free_disk_bytes(Path(training.output_dir)), output_dir=training.output_dir,
    )  # fmt: skip


def _frozen_bytes(job: Job, compute: int) -> int:
    """Bytes of a frozen weight: as it is loaded, as the user asked, or else as the run computes."""
    loaded = base.plain_module(job.model)
    dtype = next(loaded.parameters()).dtype if loaded is not None else job.model.torch_dtype
    return dtype.itemsize if dtype is not None else compute


def _targets(lora: LoRAConfig) -> list[str] | None:
    return lora.target_modules if isinstance(lora.target_modules, list) else None


def _fingerprint(job: Job, data: PreparedData, plan: Plan, precision: str) -> dict[str, Any]:
    """What has to be the same for a resumed run to be the same run."""
    config, training = job.config, job.config.training
    same = {
        "model": job.model.model_name,
        "method": config.method,
        "data": data.digest,
        "rows": plan.rows,
        "batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "learning_rate": training.learning_rate,
        "warmup_steps": plan.warmup_steps,
        "total_steps": plan.total_steps,
        "max_grad_norm": training.max_grad_norm,
        "max_length": config.data.max_length,
        "packing": config.data.packing,
        "group_by_length": config.data.group_by_length,
        "seed": training.runtime.seed,
        "precision": precision,
        "schedule": training.schedule.name,
        "decay_ratio": training.schedule.decay_ratio,
        "optimizer": training.optimizer.name,
        "betas": list(training.optimizer.betas),
        "weight_decay": training.optimizer.weight_decay,
        "lora_plus_ratio": training.optimizer.lora_plus_ratio,
    }
    if not job.full:
        lora = config.lora
        same |= {
            f"lora.{name}": getattr(lora, name)
            for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "use_qlora", "qlora_4bit", "use_rslora", "use_dora", "modules_to_save")
        }  # fmt: skip
    return same


def plan_job(job: Job) -> tuple[Plan, list[str]]:
    """The plan and the lines about the data; nothing is written."""
    processes = wanted_processes(job)
    choice = check(job, processes if processes > 1 else None)
    data = with_values(job.config.data, cache=False)
    prepared = prepare_job(replace(job, config=with_values(job.config, data=data)), choice)
    return prepared.plan, prepared.data.lines


def run_job(job: Job) -> Result:
    """Trains, saves and returns the model.

    Raises:
        ToolkitError: with reason and way out; see errors.py for the kinds.
    """
    processes = wanted_processes(job)
    choice = check(job, processes if processes > 1 else None)
    if processes > 1:
        return _run_in_processes(job, processes)
    if choice.processes == 1:
        return _run_here(job, choice, Peers())
    device = _device(job, choice)
    with process_group(device), speaking_main_process():
        return _run_here(job, choice, all_peers())


def _run_in_processes(job: Job, processes: int) -> Result:
    """The run in processes that this one starts; its model, loaded from where they saved it."""
    began = time.perf_counter()
    run_processes(job, processes)
    folder = Path(job.config.training.output_dir)
    job.model.model = None
    model = saving.load_saved(job, folder, in_fp32=not job.config.training.fp16)
    return Result(model, folder, None, read_metrics(folder / "metrics.jsonl"), time.perf_counter() - began)


def _run_here(job: Job, choice: Choice, peers: Peers) -> Result:
    """One process's part of a run."""
    if peers.size == 1:
        use_physical_cores()
    options = job.config.training.checkpoint
    with OutputFolder(job.config.training.output_dir, keep=options.save_total_limit, peers=peers) as folder:
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
        f"memory may not suffice (estimate {need}, free {free}); lower data.max_length or batch_size, or use method: qlora.",
    )


def _train(job: Job, prepared: Prepared, folder: OutputFolder, start: resume.Start | None, peers: Peers) -> Result:
    config, training = job.config, job.config.training
    model, marks, dtype = _model(job, prepared)
    path = _documents(job, prepared, model)
    run = _run(job, prepared, folder, model, path)
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
    try:
        with _watched(job, run, folder):
            state = fit(run)
    except BaseException as error:
        with contextlib.suppress(OSError):
            folder.write_run(status="stopped", reason=f"{type(error).__name__}: {str(error)[:300]}")
        raise
    finally:
        run.strategy.close()
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
    if not isinstance(run.strategy, Distributed):
        return contextlib.nullcontext()
    strategy = run.strategy
    return Watchdog(lambda: strategy.exchanges, timeout_seconds=job.config.parallel.timeout_seconds, folder=folder.path)


def _finish(job: Job, prepared: Prepared, folder: OutputFolder, run: Run, result: Result, dtype: torch.dtype) -> None:
    """Saves the model, the best or the last; where its parts lie in several processes, out of a checkpoint."""
    best = job.config.training.checkpoint.load_best and run.state.best_step not in (None, run.state.step)
    checkpoint = folder.store.folder / f"checkpoint-{run.state.best_step}"
    if best:
        best = _back_to_best(run, checkpoint)
    if prepared.choice.replicated:
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
    load_weights(run.trainable(), load_checkpoint(checkpoint, run.strategy.layouts).tensors["model"])
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


def _model(job: Job, prepared: Prepared) -> tuple[nn.Module, str, torch.dtype]:
    """The base, as the method needs it, with its adapter; a mark of its weights; the dtype to save it in."""
    config, training = job.config, job.config.training
    seed_everything(training.runtime.seed)
    model, dtype = base.load_base(job.model, config, in_fp32=prepared.precision.name == "fp32")
    marks = hashlib.sha256(json.dumps(weight_marks(model)).encode()).hexdigest()
    if job.full:
        base.as_masters(model)
    else:
        lora = config.lora
        model = add_lora(
            model, r=lora.r, alpha=lora.lora_alpha, dropout=lora.lora_dropout, target_modules=lora.target_modules,
            bias=lora.bias, use_rslora=lora.use_rslora, use_dora=lora.use_dora, modules_to_save=lora.modules_to_save,
        )  # fmt: skip
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


def _run(job: Job, prepared: Prepared, folder: OutputFolder, model: nn.Module, path: DocumentPath | None) -> Run:
    training = job.config.training
    precision, plan = prepared.precision, prepared.plan
    strategy = choose(
        prepared.choice,
        device=prepared.device,
        autocast=precision.autocast,
        scaler=precision.scaler,
        use_accelerate=job.use_accelerate,
    )
    strategy.prepare(model, _loss(model, path))
    options = training.optimizer
    optimizer = build_optimizer(
        strategy.named_parameters(model), name=options.name, learning_rate=training.learning_rate, betas=options.betas,
        eps=options.eps, weight_decay=options.weight_decay, lora_plus_ratio=options.lora_plus_ratio,
        embeddings=embedding_weights(_unwrapped(model)),
    )  # fmt: skip
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
        model=model, strategy=strategy, loader=prepared.loader, optimizer=optimizer,
        state=TrainState(micro_batch_size=training.batch_size), store=folder.store, metrics_path=folder.path / "metrics.jsonl" if strategy.is_main else None,
        total_steps=plan.total_steps, schedule=_schedule(training.schedule, plan.warmup_steps), max_grad_norm=training.max_grad_norm, eval_steps=training.eval_steps,
        save_steps=training.save_steps, keep_best=training.checkpoint.load_best and bool(held_out),
        evaluation=Evaluation(batches, prepared.data.held_out_characters) if held_out else None,
        patience=training.runtime.early_stopping_patience, threshold=training.runtime.early_stopping_threshold,
        scaled=precision.scaler, retry_smaller=prepared.choice.processes == 1, save_in_background=_copy_fits(plan, prepared.device),
        memory_hint_ja=f"見積もり: {plan.memory.text()}。data.max_length を下げるか、QLoRA か gradient_checkpointing を使ってください。",
        memory_hint_en=f"The estimate: {plan.memory.text()}. Lower data.max_length, or use QLoRA or gradient_checkpointing.",
    )  # fmt: skip


def _documents(job: Job, prepared: Prepared, model: nn.Module) -> DocumentPath | None:
    """The path of the training step, said in one line; None for padded rows."""
    kernels = job.config.training.runtime.kernels
    if kernels == "auto" and not prepared.choice.replicated:
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
        return int(torch.cuda.max_memory_allocated(device))
    return peak_memory_bytes()
