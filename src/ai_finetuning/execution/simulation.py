"""What a run's step will hold, simulated before it, and compared with what its second step held."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import torch

from ..config.section import explicitly_set
from ..data.collate import Batch, collate
from ..data.tokenize import Example
from ..engine.hooks import Callback, Control
from ..engine.state import Run
from ..engine.train_state import TrainState
from ..errors import reason_of
from ..messages import notice, warn
from ..models.quantized import held_tensors
from ..models.special_tokens import grow_embedding
from ..planner.phases import PHASES, Timeline, size_text
from ..planner.simulate import Job, simulate
from ..planner.timelines import remembered
from ..planner.tracker import Tracker
from . import base_facts
from .build import loss_of, new_adapter, optimizer_of
from .derived import kernels_of
from .place import place_for
from .resolve import RunPlan

# The optimizer step that is measured: the first warms up.
_MEASURED = 2
# Beyond this a phase was told wrongly.
_TOLERANCE = 0.05


def with_timeline(plan: RunPlan) -> RunPlan:
    """The plan with the simulated bytes of a step of its fullest process; unchanged where a step cannot be simulated."""
    timeline = _timeline(plan)
    return plan if timeline is None else replace(plan, summary=replace(plan.summary, timeline=timeline))


def _timeline(plan: RunPlan) -> Timeline | None:
    """None for weights that lie over several devices of a process, or where DeepSpeed or Accelerate hold them, where tensors
    wait in the host's memory, and in a process of several.
    """
    others = plan.device_map is not None or plan.parallel.zero_stage is not None or plan.request.use_accelerate
    if others or plan.offload != "none" or torch.distributed.is_initialized():
        return None
    module = _module(plan)
    group = worst_group(plan)
    stages, each = plan.parallel.sizes.pp, plan.parallel.sizes.dp * plan.parallel.sizes.tp
    told = []
    for rank in range(0, stages * each, each):
        timeline = _told(plan, replace(_job(plan, module), rank=rank), group)
        if timeline is None:
            return None
        told.append(timeline)
    return max(told, key=lambda timeline: timeline.peak)


def _told(plan: RunPlan, job: Job, group: Sequence[Batch]) -> Timeline | None:
    """The step on the way that a run tries first, or on padded rows, as a run goes where a model does not take that way;
    None, which is said, for a model whose code cannot be followed without data.
    """
    reason = ""
    for kernels in dict.fromkeys((job.kernels, "plain")):
        tried = replace(job, kernels=kernels)
        try:
            return remembered(_key(plan, tried), group, partial(simulate, tried, group))
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
    """The simulated bytes of the rows of the run's second step, which that step is compared with; None for a run without
    one here.
    """
    if plan.summary.total_steps < _MEASURED or plan.parallel.processes > 1 or plan.summary.timeline is None:
        return None
    epoch, index = divmod(_MEASURED - 1, len(plan.loader))
    group = plan.loader.micro_batches(epoch, index, plan.request.config.training.batch_size)
    return _told(plan, _job(plan, _module(plan)), group)


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
    )


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
    }


def worst_group(plan: RunPlan) -> list[Batch]:
    """The micro-batches of a process that hold most: the longest documents of the data, as many as a row has room for.

    Two of them stand for any number, as gradients that are there already make the difference; a pipeline has all of
    its own on the way.
    """
    training, parallel = plan.request.config.training, plan.parallel
    documents = sorted(plan.data.train, key=len, reverse=True)
    rows = _packed(documents, plan.packing_tokens, training.batch_size)
    micro_batches = -(-training.gradient_accumulation_steps // parallel.sizes.dp)
    count = micro_batches if parallel.sizes.pp > 1 else min(2, micro_batches)
    batch = collate(rows, pad_token_id=plan.tokenizer.pad_token_id, packed=plan.packing_tokens is not None)
    return [batch] * count


def _packed(documents: Sequence[Example], capacity: int | None, rows: int) -> list[list[Example]]:
    """Rows of the longest documents: one each, or as many as fit."""
    left = list(documents)
    obtained: list[list[Example]] = []
    while left and len(obtained) < rows:
        row = [left.pop(0)]
        while capacity is not None and left and sum(map(len, row)) + len(left[0]) <= capacity:
            row.append(left.pop(0))
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


def compared(timeline: Timeline, real: dict[str, int]) -> tuple[str, list[str]]:
    """`forward 1.20 / 1.21 GiB (-0.5 %), ...` of planned and real bytes, and the phases that are apart.

    Clipping counts with the backward pass, as a run does not tell them apart.
    """
    planned = dict(timeline.phases)
    for held in (planned, real):
        held["backward"] = max(held.get("backward", 0), held.pop("clip", 0))
    parts, apart = [], []
    for phase in PHASES:
        if phase == "load" or not planned.get(phase) or not real.get(phase):
            continue
        off = planned[phase] / real[phase] - 1
        parts.append(f"{phase} {size_text(planned[phase])} / {size_text(real[phase])} ({off:+.1%})")
        if abs(off) > _TOLERANCE:
            apart.append(phase)
    return ", ".join(parts), apart


def without_needless_checkpointing(plan: RunPlan) -> RunPlan:
    """On a GPU, where the formula has switched gradient checkpointing on by itself: off again where a simulated step
    fits without it.

    What the user gave, and what a resumed run had, stays.
    """
    training = plan.request.config.training
    own = "gradient_checkpointing" in explicitly_set(training) or plan.taken.get("gradient_checkpointing") is not None
    if own or plan.device.type != "cuda" or not plan.derived.gradient_checkpointing:
        return plan
    lighter = replace(
        plan,
        derived=replace(plan.derived, gradient_checkpointing=False),
        summary=replace(plan.summary, gradient_checkpointing=False),
    )
    timed = with_timeline(lighter)
    if timed.summary.timeline is None or not timed.summary.fits:
        return plan
    return timed
