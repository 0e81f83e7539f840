"""What a plan chooses on GPUs: how a step's rows are cut (planner/cuts.py), and a strategy where `auto` asks for one.

On a CPU nothing is cut: batch_size and gradient_accumulation_steps are what they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..config.run import RunConfig
from ..config.section import explicitly_set
from ..data.examples import total_of
from ..data.prepare import PreparedData
from ..errors import ConfigError, ModelError
from ..parallel.plan import ParallelPlan, resolve_parallel_plan, validate_model
from ..parallel.processes import launched
from ..parallel.strategies.device_map import Split
from ..planner import memory
from ..planner.auto import Situation, advise_strategy
from ..planner.cuts import Candidate, Choice, Cut, Freedom, best_of, ladder, looked_at
from ..planner.layers import blocks_of, split_model
from ..planner.roofline import Rates, micro_batch, sent, step_seconds
from ..planner.spread import gathered
from ..system.gpu import free_memory_bytes
from .derived import cut_of_resumed
from .offload import Room, possible
from .planned_model import PlannedModel


@dataclass(frozen=True)
class DataSizes:
    """Tokens that a step's memory and time depend on.

    Attributes:
        width: of the widest row.
        longest: of the longest document.
        row, document: of a mean row, and of a mean document.
    """

    width: int
    longest: int
    row: float
    document: float


def sizes_of(data: PreparedData, packing_tokens: int | None) -> DataSizes:
    """The sizes of rows: documents as they are, or packed."""
    tokens, documents = total_of(data.train, "lengths"), max(1, len(data.train))
    rows = documents if packing_tokens is None else max(1, round(tokens / packing_tokens))
    return DataSizes(packing_tokens or data.longest, data.longest, tokens / rows, tokens / documents)


@dataclass(frozen=True)
class Spread:
    """A strategy that a run may take.

    Attributes:
        parallel: the strategy with its sizes.
        processes: of the run.
        free: bytes on each device.
        room: bytes by GPU, where one process has all of them.
        rates: what each reaches; None where nothing is known of it.
        share: of the free bytes, that may be filled.
    """

    parallel: ParallelPlan
    processes: int
    free: int
    room: dict[int, int] | None = None
    rates: Rates | None = None
    share: float = 1.0


def parallel_plan_of(config: RunConfig, strategy: str, processes: int | None) -> ParallelPlan:
    """What a strategy means for the settings' sizes; see resolve_parallel_plan() for what is raised.

    Args:
        processes: that are to be started; None: those of the launcher.
    """
    return resolve_parallel_plan(
        strategy,
        processes=processes,
        pipeline_parallel_size=config.parallel.pipeline_parallel_size,
        tensor_parallel_size=config.parallel.tensor_parallel_size,
        pipeline_schedule=config.parallel.pipeline_schedule,
        world_size=config.training.world_size,
        local_rank=config.training.local_rank,
        deepspeed_stage=config.parallel.deepspeed_stage,
    )


def settled_cut(model: PlannedModel) -> tuple[Cut, Freedom]:
    """The cut as the settings give it, and what of it is left to the plan: nothing on a CPU, in a process that another one
    has started, and of a resumed run whose settings are the same.
    """
    request, training = model.request, model.request.config.training
    if request.resolved_strategy is not None and request.resolved_strategy.cut is not None:
        return request.resolved_strategy.cut, Freedom()
    given, offload = explicitly_set(training), training.runtime.offload
    cut = Cut(
        training.batch_size,
        training.gradient_accumulation_steps,
        training.gradient_checkpointing,
        "none" if offload == "auto" else offload,
    )
    rows_given = {name for name in ("batch_size", "gradient_accumulation_steps") if name in given}
    before = cut_of_resumed(model.taken, cut.batch_size, cut.accumulation, rows_given)
    on_gpu = model.device.type == "cuda"
    free_rows = on_gpu and not rows_given and before is None
    if before is not None:
        cut = cut.of(before)
    taken = model.taken.get("gradient_checkpointing")
    own = "gradient_checkpointing" in given
    if taken is not None and not own:
        cut = replace(cut, checkpointing=bool(taken))
    free_checkpointing = on_gpu and not own and taken is None
    return cut, Freedom(free_rows, free_checkpointing)


def free_on(model: PlannedModel, processes: int) -> int:
    """Free bytes on the device of this run that has least.

    Args:
        processes: that this one starts, a GPU each.
    """
    place = model.place
    if processes > 1 and place.device.type == "cuda" and place.elsewhere is None:
        return min(list(place.gpus().values())[:processes])
    return place.free_bytes(model.request.model)


def choose(model: PlannedModel, sizes: DataSizes, spreads: Sequence[Spread], *, auto: bool) -> Choice:
    """What to take on GPUs: of each strategy the first cut that fits, of those the cheapest.

    Args:
        auto: the strategy is for the plan to decide.
    """
    asked, free = settled_cut(model)
    rates, share = model.place.expected_rates(), model.place.share()
    found = [_looked_at(model, sizes, replace(spread, rates=rates, share=share), asked, free) for spread in spreads]
    decided = (
        *(("strategy",) if auto else ()),
        *(("batch_size", "gradient_accumulation_steps") if free.rows else ()),
        *(("gradient_checkpointing",) if free.checkpointing else ()),
        *(("offload",) if model.request.config.training.runtime.offload == "auto" else ()),
    )
    return best_of(found, decided, rates.source if rates is not None else None)


def _looked_at(
    model: PlannedModel, sizes: DataSizes, spread: Spread, asked: Cut, free: Freedom
) -> tuple[Candidate, list[Candidate]]:
    most = max(1, -(-asked.rows // spread.parallel.sizes.dp))
    measure = partial(measured, model, sizes, spread)
    cuts = ladder(asked, free, most)
    training = model.request.config.training
    if training.runtime.offload == "auto" and asked.offload == "none":
        needs = needs_of(model, sizes, spread, cuts[-1])
        room = room_of(int(spread.share * spread.free), spread.processes)
        waits = possible(spread.parallel, training.optimizer.name, needs=needs, room=room)
        cuts += [replace(cuts[-1], offload=what) for what in waits]
    return looked_at(cuts, most if free.rows else None, measure)


def room_of(usable: int, processes: int) -> Room:
    """What a process may fill of its device and of the host's memory."""
    return Room(usable, free_memory_bytes(torch.device("cpu")) // max(1, processes))


def needs_of(model: PlannedModel, sizes: DataSizes, spread: Spread, cut: Cut) -> dict[str, memory.MemoryEstimate]:
    """The estimate of a cut by what waits in the host's memory."""
    work = model.workload(sizes.width, sizes.longest, rows=cut.batch_size)
    whole = model.needs(work, spread.parallel, checkpointing=cut.checkpointing, accumulation=cut.accumulation)
    return {
        what: memory.offloaded(whole, model.shape, work, what, checkpointing=cut.checkpointing)
        for what in ("none", "activations", "optimizer")
    }


def split_of(model: PlannedModel, sizes: DataSizes, room: dict[int, int], cut: Cut) -> Split:
    """The layers of model_parallel over GPUs."""
    work = model.workload(sizes.width, sizes.longest, rows=cut.batch_size)
    return split_model(model.module, work, room, checkpointing=cut.checkpointing, targets=model.adapted)


def measured(model: PlannedModel, sizes: DataSizes, spread: Spread, cut: Cut) -> Candidate:
    """What a cut needs under a strategy, by the formulas of memory and time."""
    if spread.room is not None:
        fullest = split_of(model, sizes, spread.room, cut).fullest
        needed, free = fullest.total, fullest.capacity
    else:
        needed, free = needs_of(model, sizes, spread, cut)[cut.offload].total, spread.free
    seconds = seconds_of(model, sizes, spread.parallel, cut, spread.rates)
    return Candidate(spread.parallel.strategy, spread.processes, cut, needed, int(spread.share * free), seconds)


def seconds_of(
    model: PlannedModel, sizes: DataSizes, parallel: ParallelPlan, cut: Cut, rates: Rates | None
) -> float | None:
    """How long a step of a GPU takes by the time model; None where nothing is known of what it reaches."""
    if rates is None or model.precision.name not in rates.tflops:
        return None
    each = max(1, -(-cut.rows // parallel.sizes.dp))
    rows = min(cut.batch_size, each)
    number = -(-each // rows)
    work = model.workload(sizes.width, sizes.longest, rows=cut.batch_size)
    one = micro_batch(
        model.shape,
        replace(work, tokens=max(1, round(rows * sizes.row))),
        checkpointing=cut.checkpointing,
        document=sizes.document,
        updates=1 / number,
    )
    sending = sent(model.shape, work, parallel, number)
    return step_seconds(one, model.precision.name, rates, parallel, number, sending)


def devices_of(model: PlannedModel) -> int:
    """Devices that `auto` chooses for."""
    parallel, place, here = model.request.config.parallel, model.place, launched().size
    if here > 1:
        return here
    every = len(parallel.max_memory_per_gpu or ()) or (place.gpu_count() if place.several else 1)
    return parallel.processes or every or 1


def spreads_for_auto(model: PlannedModel) -> list[Spread]:
    """The strategies that `auto` may take on GPUs, the simplest first; the one of a resumed run where it was there.

    Not among them: `tensor` and `pipeline`, which pay by the network between the devices (docs/strategies.md tells when to
    ask for them).
    """
    config, place, here = model.request.config, model.place, launched().size
    count = devices_of(model)
    place.validate_count(count)
    gpus = place.gpus() if place.several else {}
    room = place.room(config.parallel.max_memory_per_gpu) if here == 1 and count > 1 and len(gpus) > 1 else None
    devices = list((room or gpus).values())
    free = min(devices[:count]) if len(devices) >= count else place.free_bytes(model.request.model)
    names = ["ddp"]
    if count > 1 and model.request.bits != 8 and config.training.optimizer.name == "adamw":
        names.append("fsdp")
    spreads = [
        Spread(parallel_plan_of(config, name, count if here == 1 and count > 1 else None), count, free)
        for name in names
    ]
    if room is not None:
        spreads.append(Spread(parallel_plan_of(config, "model_parallel", None), 1, free, room))
    possible_ones = [spread for spread in spreads if _trains(model, spread.parallel)] or spreads[:1]
    before = [
        spread
        for spread in possible_ones
        if (spread.parallel.strategy, count) == (model.taken.get("strategy"), model.taken.get("devices"))
    ]
    return before or possible_ones


def _trains(model: PlannedModel, parallel: ParallelPlan) -> bool:
    """Whether a strategy trains this model at all."""
    request = model.request
    if (
        model.targets is not None
        and model.targets.parameters
        and (parallel.in_parts or parallel.strategy == "model_parallel")
    ):
        return False
    try:
        validate_model(
            parallel,
            model.module.config,
            bits=request.bits,
            optimizer=request.config.training.optimizer.name,
            use_dora=not request.full and request.config.lora.use_dora,
            scaler=model.precision.scaler,
        )
        if parallel.strategy == "model_parallel":
            blocks_of(model.module, model.workload(1), checkpointing=True, targets=model.adapted)
    except (ConfigError, ModelError):
        return False
    return True


def advised_on_cpu(model: PlannedModel) -> tuple[str, int, str, str]:
    """(strategy, processes, reason in Japanese, in English) of `auto` where devices are processes of a CPU.

    Raises:
        ConfigError: no strategy fits in memory.
    """
    request, place = model.request, model.place
    count = devices_of(model)
    before = model.taken.get("strategy")
    if before in ("ddp", "fsdp") and model.taken.get("devices") == count:
        return before, count, f"学習を始めたときと同じ {before} を使います", f"{before}, as when the run began"
    devices = [place.free_bytes() // count] * count
    work = model.workload(request.config.data.max_length)
    checkpointing = model.checkpointing(work, min(devices), ParallelPlan())
    blocks = blocks_of(model.module, work, checkpointing=checkpointing, targets=model.adapted)
    advice = advise_strategy(
        Situation(
            devices=[place.usable(free) for free in devices],
            whole=memory.estimate(model.shape, work, checkpointing=checkpointing),
            gathered=gathered(blocks, model.shape, work),
            shardable=request.bits != 8 and request.config.training.optimizer.name == "adamw",
        )
    )
    return advice.strategy, advice.processes, advice.reason_ja, advice.reason_en
