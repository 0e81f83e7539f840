"""The one place that decides: from a request to the plan of its run. No weight is read, nothing is written.

The run, `--dry-run` and the process that starts others all read the same RunPlan. What is derived here (precision,
warm-up, checkpointing, ...) is derived again by every run; a resumed run takes it from its checkpoint (Derived).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..config.lora import LoRAConfig
from ..config.section import explicitly_set
from ..data.answers import longest_conversation
from ..data.examples import largest_id, longest_of, total_of
from ..data.loader import Loader
from ..data.mixed import Mixed, SourceShare
from ..data.mixture import Mixture, Taken
from ..data.prepare import FIRST_SPLIT, SPLIT, PreparedData
from ..data.streamed_loader import StreamedLoader
from ..engine.precision import Precision, precision_for
from ..engine.schedule import Schedule
from ..errors import ConfigError, Reason
from ..japanese.templates import was_written_for
from ..messages import notice, warn
from ..models.adapters import trains_embedding, validate_fit
from ..models.half_precision import risk_of_fp16, validate_fp16
from ..models.lora_targets import LoraTargets, resolve_modules_to_save, resolve_targets
from ..models.placement import DeviceMap
from ..models.plans import tensor_plan
from ..models.quantized import warn_of_experts
from ..models.source import ModelSource
from ..models.special_tokens import grow_embedding, rows_for, validate_growth, warn_of_unused_turn_ends, with_tokens
from ..models.tokenizers import ensure_pad, warn_without_end
from ..parallel.plan import ParallelPlan, validate_model
from ..parallel.processes import launched
from ..parallel.strategies.device_map import Split
from ..planner import memory
from ..planner.cuts import Candidate, Choice, Cut
from ..planner.plan import Plan
from ..planner.shape import ModelShape, shape_of
from ..planner.speed import Speed, last_speed
from ..planner.spread import on_fullest_of_map
from . import base_facts
from .adapter_start import validate_origin, validate_targets, with_adapter_settings
from .choosing import (
    DataSizes,
    Spread,
    advised_on_cpu,
    choose,
    devices_of,
    free_on,
    needs_of,
    parallel_plan_of,
    room_of,
    seconds_of,
    settled_cut,
    sizes_of,
    split_of,
    spreads_for_auto,
)
from .data_order import (
    data_of,
    eval_steps_of,
    evaluations_of,
    loader_of,
    mixture_of,
    replay_of,
    replayed_of,
    sources_taken,
    steps_of,
    tokens_of,
    validate_base,
    warmup_of,
)
from .derived import Derived, taken_over
from .disk import disk_of
from .fingerprint import fingerprint_of
from .foreseen import foreseen
from .objective import reference_passes
from .offload import resolve_offload
from .place import Place, place_for
from .planned_model import PlannedModel
from .request import ResolvedStrategy, TrainRequest
from .resume import ResumePoint, peek
from .system_prompt import with_agreed_system
from .trainer_hooks import validate_hooks
from .validate import validate_config, validate_data, validate_evaluation, validate_streaming

# Rates that LoRA papers and recipes use; the documented default of 2e-5 suits full fine-tuning.
USUAL_LORA_RATES = "1e-4 - 3e-4"


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
        take: the plan with another of the choice's candidates; None where nothing is left to the plan.
    """

    request: TrainRequest
    source: ModelSource
    tokenizer: Any
    data: PreparedData
    loader: Loader | StreamedLoader
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
    take: Callable[[Candidate], RunPlan] | None = None

    @property
    def taken(self) -> dict[str, Any]:
        """The derived values of the resumed run; empty for a new run."""
        return taken_over(self.resume)


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
    validate_streaming(config, request.train, request.eval_data)
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
    on_gpu, auto = model.device.type == "cuda", config.parallel.strategy == "auto" and request.resolved_strategy is None
    strategy = request.resolved_strategy or (_advised(model) if auto and not on_gpu else None)
    if not (auto and on_gpu):  # refused before any data is read
        validate_base(request, _parallel(request, model.place, strategy)[0])
    prepared = _prepared(model, resume)
    choice = _choice(prepared, strategy, auto=auto) if on_gpu else None
    plan = _plan(prepared, strategy, choice)
    validate_base(request, plan.parallel)
    _say_what_has_no_effect(request, plan.parallel)
    if model.targets is not None:
        model.targets.say()
    return plan


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


def _model(request: TrainRequest, source: ModelSource, taken: dict[str, Any]) -> PlannedModel:
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
    return PlannedModel(request, source, module, shape_of(module), place, precision, taken, targets)


def _advised(model: PlannedModel) -> ResolvedStrategy:
    """What parallel.strategy `auto` means for processes of a CPU, reported in one line.

    Raises:
        ConfigError: no strategy fits in memory.
    """
    strategy, processes, ja, en = advised_on_cpu(model)
    notice(f"parallel.strategy auto: {ja}。", f"parallel.strategy auto: {en}.")
    return ResolvedStrategy(strategy, processes)


def _choice(prepared: _Prepared, strategy: ResolvedStrategy | None, *, auto: bool) -> Choice:
    """What GPUs are to compute, by the formulas; nothing is refused here."""
    model, config = prepared.model, prepared.model.request.config
    if auto:
        return choose(model, prepared.sizes, spreads_for_auto(model), auto=True)
    parallel, to_start = _parallel(model.request, model.place, strategy)
    model = _of_rank(model, parallel)
    room = model.place.room(config.parallel.max_memory_per_gpu) if parallel.strategy == "model_parallel" else None
    spread = Spread(parallel, max(parallel.processes, to_start), free_on(model, to_start), room)
    return choose(model, prepared.sizes, [spread], auto=False)


def _of_rank(model: PlannedModel, parallel: ParallelPlan) -> PlannedModel:
    """With the device of this process."""
    return replace(model, place=replace(model.place, device=model.place.of_rank(parallel.processes)))


def _parallel(
    request: TrainRequest, place: Place, resolved_strategy: ResolvedStrategy | None
) -> tuple[ParallelPlan, int]:
    """How the run is spread, and the processes that have to be started for it."""
    config = request.config
    strategy = resolved_strategy.strategy if resolved_strategy is not None else config.parallel.strategy
    processes = resolved_strategy.processes if resolved_strategy is not None else config.parallel.processes
    to_start = _processes_to_start(strategy, processes, place)
    choice = parallel_plan_of(config, strategy, to_start if to_start > 1 else None)
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
    # Answers are compared at lower rates, which keep the better ones likely (docs/preference.md).
    if not request.full and request.config.objective == "sft" and "learning_rate" not in explicitly_set(training):
        rate = training.learning_rate
        notice(
            f"learning_rate は既定の {rate:g} です。LoRA では低めで、通常は {USUAL_LORA_RATES} です。",
            f"learning_rate has its default value {rate:g}, low for LoRA; {USUAL_LORA_RATES} is usual.",
        )


@dataclass(frozen=True)
class _Prepared:
    """Everything that a plan knows of its data, whatever it chooses.

    Attributes:
        packing_tokens: of a packed row, or None without packing.
        split: the rule by which a share of the rows became evaluation data.
        loader: of all rows.
        total, an_epoch: steps of the run and of an epoch; of streamed rows both are the run's.
        warmup: its steps.
        replayed: old rows of the first epoch.
        sources: what the first epoch takes of each entry of `data.train`.
    """

    model: PlannedModel
    resume: ResumePoint | None
    tokenizer: Any
    data: PreparedData
    mixture: Mixture | Mixed | None
    packing_tokens: int | None
    split: str
    total: int
    loader: Loader | StreamedLoader
    an_epoch: int
    warmup: int
    replayed: Taken | None
    sources: tuple[SourceShare, ...]

    @property
    def sizes(self) -> DataSizes:
        """Of its rows."""
        return sizes_of(self.data, self.packing_tokens)


def _prepared(model: PlannedModel, resume: ResumePoint | None) -> _Prepared:
    """Tokenizer, data and the steps that follow from them."""
    request, taken = model.request, model.taken
    config, training = request.config, request.config.training
    tokenizer = _tokenizer(request, taken)
    if request.bits is not None:
        warn_of_experts(model.module, request.bits)
    if not request.full:
        validate_origin(config, model.source.name, tokenizer)
    model = _with_rows(model, tokenizer)
    split = taken.get("split", SPLIT if resume is None else FIRST_SPLIT)
    data = data_of(request, tokenizer, split)
    mixture = mixture_of(request, data, whole=resume is not None and taken.get("replay") is None)
    loader = loader_of(request, data, mixture, tokenizer, model.shape.validate_fit)
    total, an_epoch = steps_of(training, loader)
    return _Prepared(
        model=model,
        resume=resume,
        tokenizer=tokenizer,
        data=data,
        mixture=mixture,
        packing_tokens=max(config.data.max_length, data.longest) if config.data.packing else None,
        split=split,
        total=total,
        loader=loader,
        an_epoch=an_epoch,
        warmup=warmup_of(training, taken, total),
        replayed=replayed_of(request, data, mixture, epochs=total / an_epoch),
        sources=sources_taken(mixture),
    )


def _plan(prepared: _Prepared, strategy: ResolvedStrategy | None, choice: Choice | None) -> RunPlan:
    """The numbers of a run.

    Args:
        strategy: that another process, or `auto` on a CPU, has settled.
        choice: what GPUs compute.
    """
    model, data, total = prepared.model, prepared.data, prepared.total
    request, config, training = model.request, model.request.config, model.request.config.training
    taken = choice.chosen if choice is not None else None
    if taken is not None and config.parallel.strategy == "auto" and strategy is None:
        strategy = ResolvedStrategy(taken.strategy, taken.processes)
    parallel, to_start = _parallel(request, model.place, strategy)
    model = _of_rank(model, parallel)
    place, sizes = model.place, prepared.sizes
    loader = prepared.loader.of_rank(parallel.data_place(launched().rank))
    _validate_model(model, parallel, data)
    free = free_on(model, to_start) // (parallel.processes if place.device.type == "cpu" else 1)
    room = place.room(config.parallel.max_memory_per_gpu) if parallel.strategy == "model_parallel" else None
    spread = Spread(parallel, max(parallel.processes, to_start), free, room)
    cut = taken.cut if taken is not None else _cut_on_cpu(model, sizes, spread)
    layers = None if room is None else split_of(model, sizes, room, cut)
    if layers is not None and not (choice is not None and choice.decided):
        layers.validate_fit()  # nothing is left to try
    derived = Derived(
        model.precision.name,
        training.fp16,
        prepared.warmup,
        cut.checkpointing,
        cut.batch_size,
        cut.accumulation,
        prepared.split,
        str(prepared.tokenizer.chat_template or "") or None,
        warmup_ratio=training.schedule.warmup_ratio,
        eval_steps=eval_steps_of(training, model.taken, total) if data.eval_data else None,
        strategy=parallel.strategy if config.parallel.strategy == "auto" else None,
        devices=devices_of(prepared.model) if config.parallel.strategy == "auto" else None,
        replay=replay_of(prepared.mixture),
    )
    needs = needs_of(model, sizes, spread, cut)
    asked = training.runtime.offload
    offload = resolve_offload(
        cut.offload if taken is not None else asked,
        place.device,
        parallel,
        training.optimizer.name,
        needs=needs,
        room=room_of(place.usable(free), spread.processes),
    )
    work = model.workload(sizes.width, sizes.longest, rows=cut.batch_size)
    summary = replace(
        _summary(prepared, model, derived, work, free),
        memory=needs[offload],
        limit_bytes=place.usable(free),
        strategy=parallel.strategy,
        processes=spread.processes,
        speed=_speed(model, sizes, parallel, cut),
        **foreseen(model, data, processes=spread.processes, epochs=prepared.total / max(1, prepared.an_epoch)),
        choice=choice,
        calibration=place.calibration(),
    )
    if layers is not None:
        summary = replace(summary, **_by_map(place, summary.memory, layers))
    options = training.schedule
    return RunPlan(
        request=request,
        source=model.source,
        tokenizer=prepared.tokenizer,
        data=data,
        loader=loader,
        shape=model.shape,
        device=place.device,
        precision=model.precision,
        parallel=parallel,
        processes_to_start=to_start,
        device_map=layers.device_map() if layers is not None else None,
        schedule=Schedule(options.name, prepared.warmup, options.min_lr_ratio, options.decay_ratio),
        packing_tokens=prepared.packing_tokens,
        derived=derived,
        fingerprint=fingerprint_of(request, data.digest, summary, cut),
        resume=prepared.resume,
        summary=summary,
        offload=offload,
        take=None
        if choice is None
        else lambda option: _plan(prepared, model.request.resolved_strategy, choice.taking(option)),
    )


def _cut_on_cpu(model: PlannedModel, sizes: DataSizes, spread: Spread) -> Cut:
    """As the settings say, with checkpointing where memory would be short without it."""
    cut, _ = settled_cut(model)
    work = model.workload(sizes.width, sizes.longest, rows=cut.batch_size)
    return replace(cut, checkpointing=model.checkpointing(work, spread.free, spread.parallel))


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
        warn_without_end(tokenizer)
        tokenizer = with_agreed_system(tokenizer, request.config.data.system_prompt)
    return tokenizer


def _with_rows(model: PlannedModel, tokenizer: Any) -> PlannedModel:
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


def _validate_model(model: PlannedModel, parallel: ParallelPlan, data: PreparedData) -> None:
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
    longest = longest_of(data.every) if config.objective == "sft" else longest_conversation(data.every)
    model.shape.validate_fit(max_token_id=largest_id(data.every), max_length=longest)


def _validate_experts(targets: LoraTargets, parallel: ParallelPlan) -> None:
    """Refuses adapters on tensors of experts where the model lies in parts."""
    if targets.parameters and (parallel.in_parts or parallel.strategy == "model_parallel"):
        raise ConfigError(
            f"lora.target_parameters（{', '.join(targets.parameters)}）は parallel.strategy: {parallel.strategy} "
            "では使えません。strategy: ddp を使ってください。",
            f"lora.target_parameters ({', '.join(targets.parameters)}) does not go with parallel.strategy: "
            f"{parallel.strategy}; use strategy: ddp.",
        )


def _speed(model: PlannedModel, sizes: DataSizes, parallel: ParallelPlan, cut: Cut) -> Speed | None:
    """Of the last such run here, or computed from what the GPUs reach."""
    place = model.place
    if place.elsewhere is None:
        last = last_speed(*base_facts.speed_key(model.request, model.device, parallel))
        if last is not None:
            return last
    rates = place.rates()
    seconds = seconds_of(model, sizes, parallel, cut, rates)
    return Speed(cut.rows * sizes.row / seconds, rates.source) if rates is not None and seconds else None


def _by_map(place: Place, whole: memory.MemoryEstimate, layers: Split) -> dict[str, Any]:
    """The parts of a summary that are those of the fullest GPU of a map."""
    fullest = layers.fullest
    return {
        "memory": on_fullest_of_map(whole, layers),
        "free_memory_bytes": fullest.capacity,
        "limit_bytes": place.usable(fullest.capacity),
        "devices": Reason(layers.text_ja(), layers.text_en()),
    }


def _summary(prepared: _Prepared, model: PlannedModel, derived: Derived, work: memory.Workload, free: int) -> Plan:
    request, shape, data = model.request, model.shape, prepared.data
    training = request.config.training
    model_bytes = shape.parameters * work.compute_bytes if request.full else 4 * work.trainable
    disk = disk_of(training, work, model_bytes=model_bytes, evaluates=bool(data.eval_data))
    rows_per_step = derived.batch_size * derived.gradient_accumulation_steps
    tokens, label_tokens = tokens_of(data, prepared.total * rows_per_step)
    return Plan(
        model=request.model.model_name,
        method=request.config.effective_method,
        device=str(model.place),
        precision=derived.precision,
        parameters=shape.parameters,
        trainable=work.trainable,
        rows=len(data.train) if data.stream is None else 0,
        eval_rows=len(data.eval_data),
        tokens=tokens,
        label_tokens=label_tokens,
        rows_per_step=rows_per_step,
        steps_per_epoch=prepared.an_epoch,
        total_steps=prepared.total,
        warmup_steps=derived.warmup_steps,
        gradient_checkpointing=derived.gradient_checkpointing,
        memory=memory.estimate(shape, work, checkpointing=derived.gradient_checkpointing),
        free_memory_bytes=free,
        disk_bytes=disk.needed,
        free_disk_bytes=disk.free,
        output_dir=training.output_dir,
        max_steps=training.schedule.max_steps,
        eval_steps=derived.eval_steps,
        evaluations=evaluations_of(training, derived.eval_steps, prepared.total, prepared.an_epoch),
        eval_tokens=total_of(data.eval_data, "lengths"),
        keeps_best=disk.keeps_best,
        replay=prepared.replayed,
        sources=prepared.sources,
        looked_at=None if data.stream is None else len(data.train),
        objective=request.config.objective_text,
        reference_passes=reference_passes(request.config),
    )


def _targets(lora: LoRAConfig, module: nn.Module, taken: dict[str, Any]) -> LoraTargets:
    """What the adapter goes on; refused here, before weights are read, where the model has no such names.

    Raises:
        ConfigError: a name in lora.target_modules, target_parameters or modules_to_save that nothing is called by.
    """
    named = lora.target_modules if lora.target_modules is not None else taken.get("target_modules")
    resolve_modules_to_save(module, lora.modules_to_save)
    return resolve_targets(module, named, lora.target_parameters, use_dora=lora.use_dora)
