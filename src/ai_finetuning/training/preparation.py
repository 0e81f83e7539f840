"""What a run needs to know before a weight is read: refusals, data, plan, how it is spread."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..config.lora import LoRAConfig
from ..config.run import RunConfig
from ..config.section import explicitly_set, with_values
from ..data.loader import Loader
from ..data.prepare import PreparedData, prepare
from ..data.tokenize import count_live, max_token_id
from ..engine.precision import Precision, resolve_precision
from ..engine.schedule import resolve_warmup
from ..errors import ConfigError
from ..hardware.gpu import free_memory_bytes, get_available_device
from ..models.base_model import BaseModel
from ..models.plans import tensor_plan
from ..notices import notice
from ..parallel.choose import Choice, check_strategy, refuse_model
from ..parallel.device_map import DeviceMap, capacities
from ..parallel.processes import launched
from ..planner import memory
from ..planner.auto import Situation, choose_strategy
from ..planner.layers import blocks_of, split_model
from ..planner.plan import Plan
from ..planner.shape import ModelShape, meta_model, shape_of
from . import base
from .output_folder import free_disk_bytes
from .trackers import require_trackers

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
    device_map: DeviceMap | None = None


def check(job: Job, processes: int | None = None) -> Choice:
    """Refuses what needs neither data nor weights to be refused, and says what has no effect; how the run is spread."""
    config = job.config
    parallel = config.parallel
    choice = check_strategy(
        parallel.strategy,
        processes=processes,
        pipeline_parallel_size=parallel.pipeline_parallel_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
        pipeline_schedule=parallel.pipeline_schedule,
        world_size=config.training.world_size,
        local_rank=config.training.local_rank,
        deepspeed_stage=parallel.deepspeed_stage,
    )
    if choice.strategy == "model_parallel":
        capacities(parallel.max_memory_per_gpu, _visible_gpus())
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
    if not job.full and "learning_rate" not in explicitly_set(config.training):
        rate = config.training.learning_rate
        notice(
            f"learning_rate は既定の {rate:g} です。LoRA では低めで、通常は {USUAL_LORA_RATES} です。",
            f"learning_rate stands at its default of {rate:g}, which is low for LoRA; {USUAL_LORA_RATES} is usual.",
        )
    return choice


def device_of(job: Job, choice: Choice) -> torch.device:
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
    device = device_of(job, choice)
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
    warmup = resolve_warmup(
        training.warmup_steps, explicitly_set="warmup_steps" in explicitly_set(training), total_steps=total
    )
    trusted = bool(getattr(job.model, "trust_remote_code", False))
    module = base.plain_module(job.model) or meta_model(job.model.model_name, trust_remote_code=trusted)
    shape = shape_of(module)
    refuse_model(
        choice,
        module.config,
        bits=job.bits,
        optimizer=training.optimizer.name,
        use_dora=not job.full and config.lora.use_dora,
        scaler=precision.scaler,
    )
    if choice.sizes.tp > 1:
        tensor_plan(module)  # refused here where it cannot be cut
    shape.refuse_misfit(max_token_id=max_token_id([*data.train, *data.held_out]), max_length=data.longest)
    work = _workload(
        job, shape, precision, max(config.data.max_length, data.longest) if config.data.packing else data.longest
    )
    free = _free_bytes(job, device)
    if device.type == "cpu":
        free //= choice.processes
    room = None
    if choice.strategy == "model_parallel":
        room = capacities(config.parallel.max_memory_per_gpu, _visible_gpus())
        free = sum(room.values())
    checkpointing = _checkpointing(job, shape, work, free)
    plan = _plan(job, data, loader, shape, precision, device, total, warmup, work, free, checkpointing)
    device_map = None
    if room is not None:
        split = split_model(
            module, work, room, checkpointing=checkpointing, targets=None if job.full else _targets(config.lora)
        )
        split.refuse_misfit()
        device_map = split.device_map()
    return Prepared(
        tokenizer,
        data,
        loader,
        shape,
        plan,
        precision,
        device,
        _fingerprint(job, data, plan, precision.name),
        choice,
        device_map,
    )


def _visible_gpus() -> dict[int, int]:
    """Free bytes of each GPU."""
    return {index: free_memory_bytes(torch.device("cuda", index)) for index in range(torch.cuda.device_count())}


def _free_bytes(job: Job, device: torch.device) -> int:
    """Free on the device, counting what a loaded model already takes."""
    loaded = job.model.model
    held = sum(weight.numel() * weight.element_size() for weight in loaded.parameters()) if loaded is not None else 0
    return free_memory_bytes(device) + held


def _checkpointing(job: Job, shape: ModelShape, work: memory.Workload, free: int) -> bool:
    """Gradient checkpointing: as set, else on where memory would be short without it."""
    training = job.config.training
    if "gradient_checkpointing" in explicitly_set(training):
        return training.gradient_checkpointing
    return memory.estimate(shape, work, checkpointing=False).total > 0.8 * free


def resolve_auto(job: Job) -> Job:
    """The job with parallel.strategy `auto` put in words, and said; other jobs as they are.

    Raises:
        ConfigError: the run fits in no way.
    """
    parallel = job.config.parallel
    if parallel.strategy != "auto":
        return job
    device = job.model.device or get_available_device()
    gpus: list[int] = list(_visible_gpus().values()) if device.type == "cuda" and device.index is None else []
    count = launched().size if launched().size > 1 else parallel.processes or len(gpus) or 1
    free = free_memory_bytes(device)
    devices = gpus[:count] if len(gpus) >= count else [free // count] * count
    trusted = bool(getattr(job.model, "trust_remote_code", False))
    module = base.plain_module(job.model) or meta_model(job.model.model_name, trust_remote_code=trusted)
    shape, training = shape_of(module), job.config.training
    precision = resolve_precision(training.runtime.precision, fp16=training.fp16, device=device)
    work = _workload(job, shape, precision, job.config.data.max_length)
    checkpointing = _checkpointing(job, shape, work, min(devices))
    targets = None if job.full else _targets(job.config.lora)
    several_gpus = len(gpus) >= 2 and launched().size == 1
    room = capacities(parallel.max_memory_per_gpu, _visible_gpus()) if several_gpus else None
    chosen = choose_strategy(
        Situation(
            devices=list(room.values()) if room is not None else devices,
            whole=memory.estimate(shape, work, checkpointing=checkpointing),
            gathered=max(
                block.weights for block in blocks_of(module, work, checkpointing=checkpointing, targets=targets)
            ),
            split_fits=split_model(module, work, room, checkpointing=checkpointing, targets=targets).fits
            if room is not None
            else None,
            shardable=job.bits != 8 and training.optimizer.name == "adamw",
        )
    )
    notice(f"parallel.strategy auto: {chosen.reason_ja}。", f"parallel.strategy auto: {chosen.reason_en}.")
    settled = with_values(parallel, strategy=chosen.strategy, processes=chosen.processes)
    return replace(job, config=with_values(job.config, parallel=settled))


def _workload(job: Job, shape: ModelShape, precision: Precision, width: int) -> memory.Workload:
    """What a micro-batch of rows of `width` tokens asks of the machine."""
    config, training = job.config, job.config.training
    compute = 2 if precision.autocast is not None else 4
    return memory.Workload(
        trainable=shape.parameters if job.full else shape.lora_parameters(config.lora.r, _targets(config.lora)),
        bits=job.bits,
        frozen_bytes=_frozen_bytes(job, compute),
        tokens=training.batch_size * width,
        compute_bytes=compute,
        optimizer_bytes=_OPTIMIZER_BYTES[training.optimizer.name],
        full=job.full,
    )


def _plan(
    job: Job,
    data: PreparedData,
    loader: Loader,
    shape: ModelShape,
    precision: Precision,
    device: torch.device,
    total: int,
    warmup: int,
    work: memory.Workload,
    free: int,
    checkpointing: bool,
) -> Plan:
    config, training = job.config, job.config.training
    model_bytes = shape.parameters * work.compute_bytes if job.full else 4 * work.trainable
    return Plan(
        model=job.model.model_name,
        method=config.effective_method,
        device=str(device),
        precision=precision.name,
        parameters=shape.parameters,
        trainable=work.trainable,
        rows=len(data.train),
        eval_rows=len(data.held_out),
        tokens=sum(map(len, data.train)),
        label_tokens=count_live(data.train),
        rows_per_step=training.batch_size * training.gradient_accumulation_steps,
        steps_per_epoch=len(loader),
        total_steps=total,
        warmup_steps=warmup,
        gradient_checkpointing=checkpointing,
        memory=memory.estimate(shape, work, checkpointing=checkpointing),
        free_memory_bytes=free,
        disk_bytes=memory.disk_bytes(
            work.trainable,
            kept=training.checkpoint.save_total_limit,
            model_bytes=model_bytes,
            optimizer_bytes=work.optimizer_bytes,
        ),
        free_disk_bytes=free_disk_bytes(Path(training.output_dir)),
        output_dir=training.output_dir,
    )


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
        "method": config.effective_method,
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
            for name in (
                "r",
                "lora_alpha",
                "lora_dropout",
                "target_modules",
                "bias",
                "use_qlora",
                "qlora_4bit",
                "use_rslora",
                "use_dora",
                "modules_to_save",
            )
        }
        same["lora.use_qlora"] = config.uses_qlora
    return same
