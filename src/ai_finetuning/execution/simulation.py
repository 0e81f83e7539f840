"""What a run's step will hold, simulated before it, and compared with what its second step held."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch

from ..data.collate import Batch, collate
from ..data.example import Example
from ..data.examples import Chosen, lengths_of
from ..data.loader import evaluation_batches
from ..engine.hooks import Callback, Control
from ..engine.state import Run
from ..engine.train_state import TrainState
from ..errors import reason_of
from ..messages import notice, warn
from ..models.quantized import held_tensors
from ..models.special_tokens import grow_embedding
from ..parallel.strategies.pipeline import EVALUATED, SCHEDULES
from ..planner.phases import PHASES, Timeline, size_text
from ..planner.simulate import Job, simulate_devices
from ..planner.timelines import remembered
from ..planner.tracker import Tracker
from . import base_facts
from .build import copy_fits, loss_of, new_adapter, optimizer_of
from .derived import kernels_of
from .place import place_for
from .resolve import RunPlan

# The optimizer step that is measured: the first warms up.
_MEASURED = 2
# Beyond this a phase was told wrongly.
_TOLERANCE = 0.05


def with_timeline(plan: RunPlan) -> RunPlan:
    """The plan with the simulated bytes of a step of its fullest process or device; unchanged where a step cannot be
    simulated.
    """
    others = _held_by_others(plan)
    if others is not None:
        notice(
            f"{others} の 1 ステップはシミュレーションしないため、メモリーは式の値です。",
            f"a step of {others} is not simulated, so memory is told by the formula.",
        )
        return plan
    if plan.device_map is not None:
        return _with_devices(plan)
    told = _of_ranks(plan)
    if not told:
        return plan
    timeline = max(told, key=lambda timeline: timeline.peak)
    libraries = place_for(plan.device, plan.request.elsewhere).libraries(plan.parallel.communicators)
    return replace(plan, summary=replace(plan.summary, timeline=timeline, libraries_bytes=libraries))


def _held_by_others(plan: RunPlan) -> str | None:
    """The library that holds weights or gradients in a way of its own; None where the toolkit's strategies do, as Accelerate
    with one process leaves them.
    """
    if plan.parallel.zero_stage is not None:
        return "DeepSpeed"
    return (
        "Accelerate"
        if plan.request.use_accelerate and plan.parallel.processes > 1 and not plan.parallel.in_parts
        else None
    )


def _own_rank(plan: RunPlan) -> int | None:
    """The place of this process among those of a launcher; None where it plans for others."""
    started = torch.distributed.is_initialized() and torch.distributed.get_world_size() == plan.parallel.processes
    return torch.distributed.get_rank() if started else None


def _of_ranks(plan: RunPlan) -> list[Timeline]:
    """Of one process of every stage; of a process that a launcher has started, its own. Empty where one cannot be told."""
    module, group = _module(plan), worst_group(plan)
    stages, each = plan.parallel.sizes.pp, plan.parallel.sizes.dp * plan.parallel.sizes.tp
    own = _own_rank(plan)
    obtained = []
    for rank in range(0, stages * each, each) if own is None else (own,):
        told = _told(plan, replace(_job(plan, module), rank=rank), group)
        if told is None:
            return []
        obtained += told
    return obtained


def _with_devices(plan: RunPlan) -> RunPlan:
    """The plan with the timeline of the device that is fullest by its own size, and a line of all of them."""
    told = _told(plan, _job(plan, _module(plan)), worst_group(plan))
    if told is None:
        return plan
    place = place_for(plan.device, plan.request.elsewhere)
    room = place.room(plan.request.config.parallel.max_memory_per_gpu)
    fullest = max(told, key=lambda timeline: timeline.reserved / room[timeline.device or 0])
    free = room[fullest.device or 0]
    each = ", ".join(
        f"GPU {timeline.device}: {size_text(timeline.reserved)} / {size_text(room[timeline.device or 0])}"
        for timeline in told
    )
    summary = replace(
        plan.summary,
        timeline=fullest,
        simulated_devices=each,
        libraries_bytes=place.libraries(0),
        free_memory_bytes=free,
        limit_bytes=place.usable(free),
    )
    return replace(plan, summary=summary)


def _told(plan: RunPlan, job: Job, group: Sequence[Batch]) -> list[Timeline] | None:
    """The step on the way that a run tries first, or on padded rows, as a run goes where a model does not take that way,
    for each device; None, which is said, for a model whose code cannot be followed without data.
    """
    reason = ""
    for kernels in dict.fromkeys((job.kernels, "plain")):
        tried = replace(job, kernels=kernels)
        try:
            return remembered(_key(plan, tried), [*group, *job.evaluation], partial(simulate_devices, tried, group))
        except MemoryError:
            raise
        except Exception as error:  # a model's own code, however it says so; a plan needs no simulation
            reason = reason_of(error)
    notice(
        f"このモデルの 1 ステップはシミュレーションできないため、メモリーは式の値です（{reason}）。",
        f"a step of this model cannot be simulated, so memory is told by the formula ({reason}).",
    )
    return None


def of_second_step(plan: RunPlan) -> Timeline | None:
    """The simulated bytes of the rows of the run's second step in this process, or in the first one, which that step is
    compared with; None for a run without one.
    """
    if plan.summary.total_steps < _MEASURED or plan.summary.timeline is None:
        return None
    epoch, index = plan.loader.behind(_MEASURED - 1)
    group = plan.loader.micro_batches(epoch, index, plan.derived.batch_size)
    told = _told(plan, replace(_job(plan, _module(plan)), evaluation=(), rank=_own_rank(plan) or 0), group)
    return None if told is None or len(told) > 1 else told[0]


def _module(plan: RunPlan) -> Any:
    """The base, with the rows that new tokens need; only its shapes are read."""
    module: Any = base_facts.planned_module(
        plan.request.model, plan.source, weightless=plan.request.elsewhere is not None
    )
    if plan.shape.vocabulary > module.get_input_embeddings().weight.shape[0]:
        with torch.device("meta"):
            module = type(module)(module.config)
        grow_embedding(module, plan.shape.vocabulary)
    return module


def _job(plan: RunPlan, module: Any) -> Job:
    request, precision = plan.request, plan.precision
    return Job(
        module=module,
        device=plan.device,
        dtype=torch.float32 if request.full else _frozen_dtype(plan),
        bits=request.bits,
        autocast=precision.autocast,
        kernels=kernels_of(
            request.config.training.runtime.kernels,
            plan.taken,
            resumed=bool(plan.taken),
            fp32=precision.autocast is None,
        ),
        adapter=None if request.full else partial(new_adapter, plan),
        loss=loss_of,
        optimizer=partial(optimizer_of, plan),
        checkpointing=plan.derived.gradient_checkpointing,
        parallel=plan.parallel,
        scaler=precision.scaler,
        device_map=plan.device_map,
        offload=plan.offload,
        evaluation=_longest_evaluated(plan),
        save_in_background=copy_fits(plan),
    )


def _longest_evaluated(plan: RunPlan) -> list[Batch]:
    """What a process evaluates first, and holds most at: the longest batch, and of a pipeline those that go through it
    together.
    """
    batches = evaluation_batches(
        plan.data.eval_data,
        batch_size=plan.derived.batch_size,
        pad_token_id=plan.tokenizer.pad_token_id,
        packing_length=plan.packing_tokens,
    )
    stages = plan.parallel.sizes.pp
    return batches[: 1 if stages == 1 else EVALUATED * stages * SCHEDULES[plan.parallel.schedule].stages]


def _frozen_dtype(plan: RunPlan) -> torch.dtype:
    """Of the base's weights as base_weights.load_base() loads them."""
    model, loaded = plan.request.model, base_facts.plain_module(plan.request.model)
    if loaded is not None:
        kept: torch.dtype = next(loaded.parameters()).dtype
        return kept
    if model.torch_dtype is not None:
        return model.torch_dtype
    return (
        torch.float32
        if plan.precision.name == "fp32"
        else place_for(plan.device, plan.request.elsewhere).sixteen_bit() or torch.float32
    )


def _key(plan: RunPlan, job: Job) -> dict[str, Any]:
    """Everything that a simulated step depends on, beside its rows."""
    config, module = plan.request.config, cast("Any", job.module)
    return {
        "model": module.config.to_dict(),
        "rows": plan.shape.vocabulary,
        "lora": None if plan.request.full else asdict(config.lora),
        "taken": plan.taken.get("target_modules"),
        "optimizer": asdict(config.training.optimizer),
        "device": job.device.type,
        "types": [str(job.dtype), job.bits, str(job.autocast), job.scaler],
        "kernels": job.kernels,
        "checkpointing": job.checkpointing,
        "parallel": asdict(job.parallel),
        "rank": job.rank,
        "map": None if job.device_map is None else {name: str(device) for name, device in job.device_map.items()},
        "beside": [job.offload, job.save_in_background, len(job.evaluation)],
    }


def worst_group(plan: RunPlan) -> list[Batch]:
    """The micro-batches of a process that hold most: the longest documents of the data, as many as a row has room for.

    Two of them stand for any number, as gradients that are there already make the difference; a pipeline has all of
    its own on the way.
    """
    derived, parallel = plan.derived, plan.parallel
    train = plan.data.train if plan.data.stream is None else [_of_length(plan.data.longest)] * derived.batch_size
    documents = Chosen(train, np.argsort(-lengths_of(train), kind="stable"))
    rows = _packed(documents, plan.packing_tokens, derived.batch_size)
    micro_batches = -(-derived.gradient_accumulation_steps // parallel.sizes.dp)
    count = micro_batches if parallel.sizes.pp > 1 else min(2, micro_batches)
    batch = collate(rows, pad_token_id=plan.tokenizer.pad_token_id, packed=plan.packing_tokens is not None)
    return [batch] * count


def _of_length(tokens: int) -> Example:
    """A row of so many tokens, all of them label tokens."""
    ids = np.zeros(tokens, dtype=np.int32)
    return Example(ids, ids)


def _packed(documents: Sequence[Example], capacity: int | None, rows: int) -> list[list[Example]]:
    """Rows of the longest documents: one each, or as many as fit."""
    place = 0
    obtained: list[list[Example]] = []
    while place < len(documents) and len(obtained) < rows:
        row = [documents[place]]
        place += 1
        while (
            capacity is not None and place < len(documents) and sum(map(len, row)) + len(documents[place]) <= capacity
        ):
            row.append(documents[place])
            place += 1
        obtained.append(row)
    return obtained


class MeasuredStep(Callback):
    """Follows the run's second step and compares it with the plan, in one line a phase that is apart, or one for all.

    On a GPU its allocator is asked; on a CPU every operation of that step is followed, which slows it down.
    """

    full_masks = False

    def __init__(self, device: torch.device, timeline: Timeline) -> None:
        self._device, self._timeline = device, timeline
        self._tracker = Tracker()
        self._running = contextlib.ExitStack()
        self._measuring = False
        self._phase = "load"
        self._peaks: dict[str, int] = {}
        self._run: Run | None = None

    def of(self, run: Run) -> MeasuredStep:
        """Itself, knowing the run that it follows."""
        self._run = run
        return self

    def at(self, phase: str, part: str = "") -> None:
        """Another phase begins."""
        if not self._measuring:
            return
        if self._device.type == "cuda":
            held = torch.cuda.max_memory_allocated(self._device)
            self._peaks[self._phase] = max(held, self._peaks.get(self._phase, 0))
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._tracker.at(phase, part)
        self._phase = phase

    def on_step_begin(self, state: TrainState, control: Control) -> None:
        """The step to measure begins."""
        if state.step + 1 != _MEASURED or self._measuring:
            return
        self._measuring = True
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        self._running.enter_context(self._tracker)
        self._tracker.hold(self._held())
        self._tracker.forget_peaks()

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """It has ended: says how far the plan was off."""
        if not self._measuring:
            return
        self.at("load")
        self.close()
        real = self._peaks if self._device.type == "cuda" else self._tracker.by_phase()
        said = compared(self._timeline, real)
        notice(
            f"メモリーの計画と実際（ステップ {_MEASURED}）: {said[0]}",
            f"memory, planned and real (step {_MEASURED}): {said[0]}",
        )
        if said[1]:
            phases = ", ".join(said[1])
            warn(
                f"計画と {_TOLERANCE:.0%} 以上違う段階があります: {phases}。",
                f"the plan was off by more than {_TOLERANCE:.0%} in: {phases}.",
            )

    def close(self) -> None:
        """Nothing is followed any more."""
        self._measuring = False
        self._running.close()

    def _held(self) -> list[torch.Tensor]:
        """What lives between two steps."""
        assert self._run is not None
        states = [value for state in self._run.optimizer.state.values() for value in state.values()]
        return [*held_tensors(self._run.model), *(value for value in states if isinstance(value, torch.Tensor))]


def _both(timeline: Timeline, real: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """(planned, real) bytes of each phase that both have; clipping counts with the backward pass, as a run does not tell
    them apart.
    """
    held = [dict(timeline.phases), dict(real)]
    for phases in held:
        phases["backward"] = max(phases.get("backward", 0), phases.pop("clip", 0))
    planned, measured = held
    return {
        phase: (planned[phase], measured[phase])
        for phase in PHASES
        if phase != "load" and planned.get(phase) and measured.get(phase)
    }


def deviations(timeline: Timeline, real: Mapping[str, int]) -> dict[str, float]:
    """How far planned bytes are from the real ones, by phase: 0.1 is 10 % too high."""
    return {phase: planned / held - 1 for phase, (planned, held) in _both(timeline, real).items()}


def compared(timeline: Timeline, real: Mapping[str, int]) -> tuple[str, list[str]]:
    """`forward 1.20 / 1.21 GiB (-0.5 %), ...` of planned and real bytes, and the phases that are apart."""
    off = deviations(timeline, real)
    parts = [
        f"{phase} {size_text(planned)} / {size_text(held)} ({off[phase]:+.1%})"
        for phase, (planned, held) in _both(timeline, real).items()
    ]
    return ", ".join(parts), [phase for phase, value in off.items() if abs(value) > _TOLERANCE]
