"""The one place that decides: from a request to the plan of its run. No weight is read, nothing is written.

The run, `--dry-run` and the process that starts others all read the same RunPlan. What is derived here (precision,
warm-up, checkpointing, ...) is derived again by every run; a resumed run takes it from its checkpoint (Derived).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..config.lora import LoRAConfig
from ..config.section import explicitly_set
from ..data.loader import Loader
from ..data.mixture import Taken
from ..data.prepare import FIRST_SPLIT, SPLIT, PreparedData, prepare
from ..data.tokenize import count_label_tokens, max_token_id
from ..engine.precision import Precision, precision_for
from ..engine.schedule import Schedule
from ..errors import ConfigError, Reason
from ..japanese.templates import was_written_for
from ..messages import notice, warn
from ..models import fused
from ..models.adapters import trains_embedding, validate_fit
from ..models.half_precision import risk_of_fp16, validate_fp16
from ..models.lora_targets import LoraTargets, resolve_modules_to_save, resolve_targets
from ..models.parts import decoder_layers
from ..models.placement import DeviceMap
from ..models.plans import tensor_plan
from ..models.quantized import warn_of_experts
from ..models.source import ModelSource
from ..models.special_tokens import grow_embedding, rows_for, validate_growth, warn_of_unused_turn_ends, with_tokens
from ..models.tokenizers import ensure_pad
from ..parallel.plan import ParallelPlan, resolve_parallel_plan, validate_model
from ..parallel.processes import launched
from ..parallel.strategies.device_map import Split
from ..planner import memory
from ..planner.auto import Situation, advise_strategy
from ..planner.layers import blocks_of, split_model
from ..planner.plan import Plan
from ..planner.roofline import micro_batch, speed_by
from ..planner.shape import ModelShape, shape_of
from ..planner.speed import Speed, last_speed
from ..planner.spread import on_fullest_device, on_fullest_of_map
from ..system.gpu import free_memory_bytes
from . import base_facts
from .adapter_start import validate_origin, validate_targets, with_adapter_settings
from .data_order import eval_steps_of, evaluations_of, loader_of, mixture_of, replayed_of, warmup_of
from .derived import Derived, kernels_of, taken_over
from .disk import disk_of
from .fingerprint import fingerprint_of
from .offload import Room, resolve_offload
from .place import Place, place_for
from .request import ResolvedStrategy, TrainRequest
from .resume import ResumePoint, peek
from .system_prompt import with_agreed_system
from .trainer_hooks import validate_hooks
from .validate import validate_config, validate_data, validate_evaluation

# Rates that LoRA papers and recipes use; the documented default of 2e-5 suits full fine-tuning.
USUAL_LORA_RATES = "1e-4 - 3e-4"
# Bytes of optimizer state a trained weight; muon's matrices have one moment, which most weights of a model belong to.
_OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "muon": 4}


@dataclass(frozen=True)
class RunPlan:
    """Everything that is decided before weights are read.

    Attributes:
        request: what was asked.
        source: where the base is.
        tokenizer: with pad token and chat template.
        data: rows of tokens to train on and to evaluate on.
        loader: this process's share of them, in order.
        shape: sizes of the model.
        device: where this process computes.
        precision: of the forward pass.
        parallel: how the run is spread.
        processes_to_start: on this machine; 1 where this process is the run, or one of its processes.
        device_map: devices by module name under model_parallel.
        schedule: the learning rate over the steps.
        packing_tokens: tokens of a packed row, or None without packing.
        derived: what was decided for the user.
        fingerprint: what has to be the same for a resumed run to be the same run.
        resume: the checkpoint to continue from, or None.
        summary: the numbers, for people.
        offload: what waits in the host's memory: none, activations or optimizer.
    """

    request: TrainRequest
    source: ModelSource
    tokenizer: Any
    data: PreparedData
    loader: Loader
    shape: ModelShape
    device: torch.device
    precision: Precision
    parallel: ParallelPlan
    processes_to_start: int
    device_map: DeviceMap | None
    schedule: Schedule
    packing_tokens: int | None
    derived: Derived
    fingerprint: dict[str, Any]
    resume: ResumePoint | None
    summary: Plan
    offload: str

    @property
    def taken(self) -> dict[str, Any]:
        """The derived values of the resumed run; empty for a new run."""
        return taken_over(self.resume)


@dataclass(frozen=True)
class _Model:
    """What is known of the base and the machine: the parts of a plan that the choice of a strategy needs."""

    request: TrainRequest
    source: ModelSource
    module: nn.Module
    shape: ModelShape
    place: Place
    precision: Precision
    taken: dict[str, Any]
    targets: LoraTargets | None

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        return self.place.device

    @property
    def adapted(self) -> list[str] | None:
        """Names, or their ends, of the layers that carry an adapter; None for full fine-tuning."""
        return self.targets.modules if self.targets is not None else None

    def workload(self, width: int, longest: int | None = None) -> memory.Workload:
        """What a micro-batch of rows of `width` tokens, and documents of at most `longest`, asks of the machine."""
        request, training = self.request, self.request.config.training
        compute = 2 if self.precision.autocast is not None else 4
        return memory.Workload(
            trainable=self._trainable(),
            bits=request.bits,
            frozen_bytes=_frozen_bytes(request, compute),
            tokens=training.batch_size * width,
            compute_bytes=compute,
            optimizer_bytes=_OPTIMIZER_BYTES[training.optimizer.name],
            full=request.full,
            longest=longest or width,
            adapted=0 if request.full else self.shape.adapted_inputs(self.adapted),
            dropout=not request.full and request.config.lora.lora_dropout > 0,
            fused=self._fused(),
            gpu=self.device.type == "cuda",
            documents=training.runtime.kernels != "plain",
        )

    def _fused(self) -> bool:
        """Whether fused blocks will compute the layers, as far as settings and configuration tell."""
        request, training = self.request, self.request.config.training
        fp32 = self.precision.autocast is None
        kernels = kernels_of(training.runtime.kernels, self.taken, resumed=bool(self.taken), fp32=fp32)
        plain = request.bits is not None or kernels != "auto" or self.device.type != "cpu"
        if plain or (not request.full and request.config.lora.use_dora):
            return False
        in_fp32 = request.full or _frozen_bytes(request, 4) == 4
        compute = self.precision.autocast or (torch.float32 if in_fp32 else None)
        return fused.why_not(self.module, self.device, compute=compute) is None

    def _trainable(self) -> int:
        if self.targets is None:
            return self.shape.parameters
        r = self.request.config.lora.r
        return self.shape.lora_parameters(r, self.adapted) + self.targets.parameter_weights(r)

    def checkpointing(self, work: memory.Workload, free: int, parallel: ParallelPlan) -> bool:
        """Gradient checkpointing: as given, as the run began, else on where memory would be short without it."""
        training = self.request.config.training
        if "gradient_checkpointing" in explicitly_set(training):
            return training.gradient_checkpointing
        if self.taken.get("gradient_checkpointing") is not None:
            return bool(self.taken["gradient_checkpointing"])
        return self.needs(work, parallel, checkpointing=False).total > self.place.comfortable(free)

    def needs(self, work: memory.Workload, parallel: ParallelPlan, *, checkpointing: bool) -> memory.MemoryEstimate:
        """The peak of the process that holds most of the run."""
        whole = memory.estimate(self.shape, work, checkpointing=checkpointing)
        if not parallel.in_parts or decoder_layers(self.module) is None:  # fsdp then gathers all of it
            return whole
        blocks = blocks_of(self.module, work, checkpointing=checkpointing, targets=self.adapted)
        count = self.request.config.training.gradient_accumulation_steps
        return on_fullest_device(whole, self.shape, work, blocks, parallel, -(-count // parallel.sizes.dp))


def resolve(request: TrainRequest, resume: ResumePoint | None = None) -> RunPlan:
    """The plan of a run.

    Args:
        request: what was asked.
        resume: the checkpoint to continue from, found and verified; None looks for it without verifying it.

    Raises:
        ToolkitError: whatever can be refused before weights are read.
    """
    config = with_adapter_settings(request.config)
    request = replace(request, config=config)
    config.validate()
    validate_config(config)
    validate_data(request.train, request.eval_data, config.data.replay)
    validate_evaluation(config, request.eval_data)
    validate_strategy(request)
    source = request.model.find()
    base_facts.validate_method(request, source)
    if resume is None:
        resume = peek(config.training.output_dir, config.training.checkpoint)
    taken = taken_over(resume)
    model = _model(request, source, taken)
    if not request.full and config.lora.adapter is not None:
        validate_fit(model.module, config.lora.adapter)
        validate_targets(config, [name for name, _, _ in model.shape.linear_features])
    resolved_strategy = request.resolved_strategy or _resolve_auto(model)
    parallel, processes_to_start = _parallel(request, model.place, resolved_strategy)
    _say_what_has_no_effect(request, parallel)
    model = replace(model, place=replace(model.place, device=model.place.of_rank(parallel.processes)))
    return _plan(model, parallel, processes_to_start, resume)


def validate_precision(config: Any, precision: Precision, weights: torch.dtype | None = None) -> None:
    """Refuses a model that overflows in fp16 where the run would compute in it; warns of one that may.

    Args:
        weights: dtype that a frozen base was asked for, in which it computes where there is no autocast.

    Raises:
        ModelError: with the way out.
    """
    if (precision.autocast or weights) is not torch.float16:
        return
    validate_fp16(config)
    risk = risk_of_fp16(config)
    if risk is not None:
        warn(risk.ja, risk.en)


def _model(request: TrainRequest, source: ModelSource, taken: dict[str, Any]) -> _Model:
    training = request.config.training
    place = place_for(request.model.device, request.elsewhere)
    device = place.device
    module = base_facts.planned_module(request.model, source, weightless=request.elsewhere is not None)
    asked = training.runtime.precision
    if asked == "auto" and taken.get("fp16", training.fp16) == training.fp16:
        asked = taken.get("precision", asked)
    precision = precision_for(asked, fp16=training.fp16, device=device, best=place.sixteen_bit())
    frozen = request.model.torch_dtype if not request.full and device.type != "cpu" else None
    validate_precision(module.config, precision, frozen)
    targets = None if request.full else _targets(request.config.lora, module, taken)
    return _Model(request, source, module, shape_of(module), place, precision, taken, targets)


def _resolve_auto(model: _Model) -> ResolvedStrategy | None:
    """What parallel.strategy `auto` means here, reported in one line; None for other strategies.

    Raises:
        ConfigError: no strategy fits in memory.
    """
    request, place = model.request, model.place
    parallel = request.config.parallel
    if parallel.strategy != "auto":
        return None
    gpus = list(place.gpus().values()) if place.several else []
    count = launched().size if launched().size > 1 else parallel.processes or len(gpus) or 1
    devices = gpus[:count] if len(gpus) >= count else [place.free_bytes() // count] * count
    work = model.workload(request.config.data.max_length)
    checkpointing = model.checkpointing(work, min(devices), ParallelPlan())
    targets = model.adapted
    several_gpus = len(gpus) >= 2 and launched().size == 1
    room = place.room(parallel.max_memory_per_gpu) if several_gpus else None
    blocks = blocks_of(model.module, work, checkpointing=checkpointing, targets=targets)
    chosen = advise_strategy(
        Situation(
            devices=[place.usable(free) for free in (room.values() if room is not None else devices)],
            whole=memory.estimate(model.shape, work, checkpointing=checkpointing),
            gathered=max(block.weights for block in blocks),
            split_fits=split_model(model.module, work, room, checkpointing=checkpointing, targets=targets).fits
            if room is not None
            else None,
            shardable=request.bits != 8 and request.config.training.optimizer.name == "adamw",
        )
    )
    notice(f"parallel.strategy auto: {chosen.reason_ja}。", f"parallel.strategy auto: {chosen.reason_en}.")
    return ResolvedStrategy(chosen.strategy, chosen.processes)


def _parallel(
    request: TrainRequest, place: Place, resolved_strategy: ResolvedStrategy | None
) -> tuple[ParallelPlan, int]:
    """How the run is spread, and the processes that have to be started for it."""
    config = request.config
    strategy = resolved_strategy.strategy if resolved_strategy is not None else config.parallel.strategy
    processes = resolved_strategy.processes if resolved_strategy is not None else config.parallel.processes
    to_start = _processes_to_start(strategy, processes, place)
    choice = resolve_parallel_plan(
        strategy,
        processes=to_start if to_start > 1 else None,
        pipeline_parallel_size=config.parallel.pipeline_parallel_size,
        tensor_parallel_size=config.parallel.tensor_parallel_size,
        pipeline_schedule=config.parallel.pipeline_schedule,
        world_size=config.training.world_size,
        local_rank=config.training.local_rank,
        deepspeed_stage=config.parallel.deepspeed_stage,
    )
    if choice.strategy == "model_parallel":
        place.room(config.parallel.max_memory_per_gpu)
    validate_hooks(request.hooks, choice, to_start, request.eval_data)
    return choice, to_start


def validate_strategy(request: TrainRequest) -> None:
    """Refuses, on every process alike, a strategy that does not fit the processes that a launcher has started.

    Raises:
        ConfigError: sizes or ranks that do not fit.
    """
    if request.config.parallel.strategy != "auto":
        _parallel(request, place_for(request.model.device, request.elsewhere), request.resolved_strategy)


def _processes_to_start(strategy: str, processes: int | None, place: Place) -> int:
    """Processes that this run should have on this machine and has not: more than 1 means that they must be started."""
    if launched().size > 1 or torch.distributed.is_initialized() or strategy == "model_parallel":
        return 1
    if processes is not None:
        place.validate_count(processes)
        return processes
    return place.gpu_count() if place.several else 1  # else one device was meant


def _say_what_has_no_effect(request: TrainRequest, parallel: ParallelPlan) -> None:
    training = request.config.training
    if training.ddp and parallel.processes == 1:
        notice(
            "ddp=True ですがプロセスは 1 つなので、通常どおり学習します。",
            "ddp=True, but there is one process: training as usual.",
        )
    if not request.full and "learning_rate" not in explicitly_set(training):
        rate = training.learning_rate
        notice(
            f"learning_rate は既定の {rate:g} です。LoRA では低めで、通常は {USUAL_LORA_RATES} です。",
            f"learning_rate has its default value {rate:g}, low for LoRA; {USUAL_LORA_RATES} is usual.",
        )


def _plan(model: _Model, parallel: ParallelPlan, processes_to_start: int, resume: ResumePoint | None) -> RunPlan:
    """Tokenizer, data and the numbers that follow from them."""
    request, precision = model.request, model.precision
    config, training = request.config, request.config.training
    taken = model.taken
    tokenizer = _tokenizer(request, taken)
    if request.bits is not None:
        warn_of_experts(model.module, request.bits)
    if not request.full:
        validate_origin(config, model.source.name, tokenizer)
    model = _with_rows(model, tokenizer)
    split = taken.get("split", SPLIT if resume is None else FIRST_SPLIT)
    data = prepare(request.train, request.eval_data, tokenizer, config.data, seed=training.runtime.seed, split=split)
    packing_tokens = max(config.data.max_length, data.longest) if config.data.packing else None
    mixture = mixture_of(request, data)
    loader = loader_of(request, data, mixture, tokenizer, parallel)
    total = training.schedule.max_steps or loader.steps_of(training.num_epochs)
    warmup = warmup_of(training, taken, total)
    _validate_model(model, parallel, data)
    work = model.workload(packing_tokens or data.longest, data.longest)
    place = model.place
    free = place.free_bytes(request.model) // (parallel.processes if place.device.type == "cpu" else 1)
    layers = None
    if parallel.strategy == "model_parallel":
        room = place.room(config.parallel.max_memory_per_gpu)
        checkpointing = model.checkpointing(work, sum(room.values()), parallel)
        layers = split_model(model.module, work, room, checkpointing=checkpointing, targets=model.adapted)
        layers.validate_fit()
    else:
        checkpointing = model.checkpointing(work, free, parallel)
    derived = Derived(
        precision.name,
        training.fp16,
        warmup,
        checkpointing,
        split,
        str(tokenizer.chat_template or "") or None,
        warmup_ratio=training.schedule.warmup_ratio,
        eval_steps=eval_steps_of(training, taken, total) if data.eval_data else None,
    )
    replayed = replayed_of(request, data, mixture, epochs=total / len(loader))
    whole = model.needs(work, parallel, checkpointing=checkpointing)
    needs = {
        what: memory.offloaded(whole, model.shape, work, what, checkpointing=checkpointing)
        for what in ("none", "activations", "optimizer")
    }
    host = free_memory_bytes(torch.device("cpu")) // max(parallel.processes, processes_to_start)
    offload = resolve_offload(
        training.runtime.offload,
        place.device,
        parallel,
        training.optimizer.name,
        needs=needs,
        room=Room(device=place.usable(free), host=host),
    )
    summary = replace(
        _summary(model, data, loader, derived, total, work, free, replayed),
        memory=needs[offload],
        limit_bytes=place.usable(free),
        strategy=parallel.strategy,
        processes=max(parallel.processes, processes_to_start),
        speed=_speed(model, work, parallel, data, derived),
    )
    if layers is not None:
        summary = replace(summary, **_by_map(place, summary.memory, layers))
    options = training.schedule
    return RunPlan(
        request=request,
        source=model.source,
        tokenizer=tokenizer,
        data=data,
        loader=loader,
        shape=model.shape,
        device=place.device,
        precision=precision,
        parallel=parallel,
        processes_to_start=processes_to_start,
        device_map=layers.device_map() if layers is not None else None,
        schedule=Schedule(options.name, warmup, options.min_lr_ratio, options.decay_ratio),
        packing_tokens=packing_tokens,
        derived=derived,
        fingerprint=fingerprint_of(request, data.digest, summary),
        resume=resume,
        summary=summary,
        offload=offload,
    )


def _tokenizer(request: TrainRequest, taken: dict[str, Any]) -> Any:
    """The base's tokenizer with the user's tokens; a resumed run renders prompts by the template that it began with."""
    config = request.config.model
    tokenizer = with_tokens(request.model.ensure_tokenizer(), config)
    if config.special_tokens and "pad_token" not in config.special_tokens:
        ensure_pad(tokenizer)  # what was chosen beside the tokenizer's own eos may be the eos now
    template, named = taken.get("chat_template"), getattr(request.model, "chat_template", None)
    # A key that is named stands for the text that it had then.
    own = template is None or (named is not None and not was_written_for(named, template))
    if not own and tokenizer.chat_template != template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
    if request.config.method != "pretrain":
        warn_of_unused_turn_ends(tokenizer)
        tokenizer = with_agreed_system(tokenizer, request.config.data.system_prompt)
    return tokenizer


def _with_rows(model: _Model, tokenizer: Any) -> _Model:
    """The model with as many embedding rows as new tokens need; only ever the one without weights grows here."""
    config = model.request.config
    rows, there = rows_for(tokenizer, config.model.extra_tokens), model.shape.vocabulary
    trains = model.request.full or trains_embedding(model.module, config.lora.modules_to_save or ())
    validate_growth(rows, there, trains_embedding=trains)
    if rows <= there:
        return model
    module = copy.deepcopy(model.module)
    grow_embedding(module, rows)
    return replace(model, module=module, shape=shape_of(module))


def _validate_model(model: _Model, parallel: ParallelPlan, data: PreparedData) -> None:
    """Refuses a model that the strategy cannot train, and rows that the model cannot take."""
    config = model.request.config
    validate_model(
        parallel,
        model.module.config,
        bits=model.request.bits,
        optimizer=config.training.optimizer.name,
        use_dora=not model.request.full and config.lora.use_dora,
        scaler=model.precision.scaler,
    )
    if model.targets is not None:
        _validate_experts(model.targets, parallel)
    if parallel.sizes.tp > 1:
        tensor_plan(model.module)  # refused here where it cannot be cut
    model.shape.validate_fit(max_token_id=max_token_id(data.every), max_length=data.longest)


def _validate_experts(targets: LoraTargets, parallel: ParallelPlan) -> None:
    """Refuses adapters on tensors of experts where the model lies in parts, and says what LoRA goes on."""
    if targets.parameters and (parallel.in_parts or parallel.strategy == "model_parallel"):
        raise ConfigError(
            f"lora.target_parameters（{', '.join(targets.parameters)}）は parallel.strategy: {parallel.strategy} "
            "では使えません。strategy: ddp を使ってください。",
            f"lora.target_parameters ({', '.join(targets.parameters)}) does not go with parallel.strategy: "
            f"{parallel.strategy}; use strategy: ddp.",
        )
    targets.say()


def _speed(
    model: _Model, work: memory.Workload, parallel: ParallelPlan, data: PreparedData, derived: Derived
) -> Speed | None:
    """Of the last such run here, or computed from what the GPUs reach."""
    training = model.request.config.training
    if model.place.elsewhere is None:
        last = last_speed(*base_facts.speed_key(model.request, model.device, parallel))
        if last is not None:
            return last
    rates = model.place.rates()
    if rates is None or derived.precision not in rates.tflops:
        return None
    tokens = sum(map(len, data.train)) / max(1, len(data.train)) * training.batch_size
    number = max(1.0, training.gradient_accumulation_steps / parallel.sizes.dp)
    one = micro_batch(
        model.shape,
        replace(work, tokens=max(1, round(tokens))),
        checkpointing=derived.gradient_checkpointing,
        document=tokens / training.batch_size,
        updates=1 / number,
    )
    return speed_by(one, tokens, derived.precision, rates, parallel, number)


def _by_map(place: Place, whole: memory.MemoryEstimate, layers: Split) -> dict[str, Any]:
    """The parts of a summary that are those of the fullest GPU of a map."""
    fullest = layers.fullest
    return {
        "memory": on_fullest_of_map(whole, layers),
        "free_memory_bytes": fullest.capacity,
        "limit_bytes": place.usable(fullest.capacity),
        "devices": Reason(layers.text_ja(), layers.text_en()),
    }


def _summary(
    model: _Model,
    data: PreparedData,
    loader: Loader,
    derived: Derived,
    total: int,
    work: memory.Workload,
    free: int,
    replayed: Taken | None,
) -> Plan:
    request, shape = model.request, model.shape
    training = request.config.training
    model_bytes = shape.parameters * work.compute_bytes if request.full else 4 * work.trainable
    disk = disk_of(training, work, model_bytes=model_bytes, evaluates=bool(data.eval_data))
    return Plan(
        model=request.model.model_name,
        method=request.config.effective_method,
        device=str(model.place),
        precision=derived.precision,
        parameters=shape.parameters,
        trainable=work.trainable,
        rows=len(data.train),
        eval_rows=len(data.eval_data),
        tokens=sum(map(len, data.train)),
        label_tokens=count_label_tokens(data.train),
        rows_per_step=training.batch_size * training.gradient_accumulation_steps,
        steps_per_epoch=len(loader),
        total_steps=total,
        warmup_steps=derived.warmup_steps,
        gradient_checkpointing=derived.gradient_checkpointing,
        memory=memory.estimate(shape, work, checkpointing=derived.gradient_checkpointing),
        free_memory_bytes=free,
        disk_bytes=disk.needed,
        free_disk_bytes=disk.free,
        output_dir=training.output_dir,
        max_steps=training.schedule.max_steps,
        eval_steps=derived.eval_steps,
        evaluations=evaluations_of(training, derived.eval_steps, total, len(loader)),
        keeps_best=disk.keeps_best,
        replay=replayed,
    )


def _frozen_bytes(request: TrainRequest, compute: int) -> int:
    """Bytes of a frozen weight: as it is loaded, as the user asked, or else as the run computes."""
    loaded = base_facts.plain_module(request.model)
    dtype = next(loaded.parameters()).dtype if loaded is not None else request.model.torch_dtype
    return dtype.itemsize if dtype is not None else compute


def _targets(lora: LoRAConfig, module: nn.Module, taken: dict[str, Any]) -> LoraTargets:
    """What the adapter goes on; refused here, before weights are read, where the model has no such names.

    Raises:
        ConfigError: a name in lora.target_modules, target_parameters or modules_to_save that nothing is called by.
    """
    named = lora.target_modules if lora.target_modules is not None else taken.get("target_modules")
    resolve_modules_to_save(module, lora.modules_to_save)
    return resolve_targets(module, named, lora.target_parameters, use_dora=lora.use_dora)
