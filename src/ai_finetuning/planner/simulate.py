"""The memory of a training step, exactly: the run's own step on tensors that hold no data.

Model, adapter, strategy, loss and optimizer are the run's own; weights are never read and nothing is computed, so that a
model that does not fit can be simulated, in seconds. What is counted is what tensors hold (planner/tracker.py); what a
GPU's allocator takes for it beside that is modelled (planner/allocator.py).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.optimizer import NamedParameters, make_state
from ..kernels.attention import forget_masks
from ..kernels.stand_in import without_arithmetic
from ..models.activation_checkpointing import enable_activation_checkpointing
from ..models.adapters import without_input_casts
from ..models.documents import VarlenForward, assumed_forward_path
from ..models.lora_forward import lighten
from ..models.parts import decoder_layers, unwrapped
from ..models.plans import tensor_plan
from ..models.quantized import held_tensors
from ..parallel.batch import Batch, LossFunction
from ..parallel.build import build_strategy
from ..parallel.plan import ParallelPlan
from ..parallel.strategy import Strategy
from ._upstream import masks_as_with_data, pretended_group, tensors_without_data
from .allocator import CachingAllocator
from .blank import materialize, quantize_shapes, shapes_of
from .phases import PHASES, Moment, Timeline, mark_phases, marked
from .tracker import Tracker


@dataclass(frozen=True)
class Job:
    """A training step as a run makes it.

    Attributes:
        module: the base, loaded or on the meta device; only its shapes are read.
        device: that the plan is for; CPUs and GPUs take other kernels.
        dtype: of the base's weights.
        bits: 4 or 8 where it is quantized, else None.
        autocast: dtype of the forward pass, or None.
        kernels: as the setting says.
        adapter: puts the adapter on; None trains all weights, in fp32.
        loss: of a model on the path of its step.
        optimizer: over (name, weight) pairs of a model.
        checkpointing: activations are computed again in the backward pass.
        parallel: how the run is spread.
        rank: whose step it is.
        scaler: gradients are scaled (fp16).
    """

    module: nn.Module
    device: torch.device
    dtype: torch.dtype
    bits: int | None
    autocast: torch.dtype | None
    kernels: str
    adapter: Callable[[nn.Module], nn.Module] | None
    loss: Callable[[nn.Module, VarlenForward | None], LossFunction]
    optimizer: Callable[[NamedParameters, Any], torch.optim.Optimizer]
    checkpointing: bool = False
    parallel: ParallelPlan = ParallelPlan()
    rank: int = 0
    scaler: bool = False


@dataclass(frozen=True)
class _Trace:
    """What one simulated step held, in moments, and what the allocator took beyond the peak."""

    peaks: Mapping[Moment, int]
    overhead: int
    unknown: frozenset[str]


def simulate(job: Job, group: Sequence[Batch], *, all_layers: bool = False) -> Timeline:
    """The bytes of a training step on a group of micro-batches; the process's tensors and settings stay as they are.

    Not for a process of several: it pretends that there are others.

    Args:
        job: the step.
        group: micro-batches of one process, of any values: shapes and numbers of labels count.
        all_layers: never tell deep models from shallow ones of the same kind.
    """
    began = time.perf_counter()
    layers = decoder_layers(job.module)
    depth = len(layers) if layers is not None else 0
    few = () if all_layers or job.parallel.sizes.pp > 1 else _shallow(job.module.config, depth)
    traces = [_trace(job, group, number) for number in few or (None,)]
    peaks = _extrapolated(few, [trace.peaks for trace in traces], depth) if few else traces[0].peaks
    phases = _by_phase(peaks)
    return Timeline(
        phases=phases,
        reserved=max(phases.values()) + traces[-1].overhead,
        layers=few,
        unknown=tuple(sorted(traces[-1].unknown)),
        seconds=time.perf_counter() - began,
    )


def _shallow(config: Any, depth: int) -> tuple[int, ...]:
    """Two numbers of layers that tell of any other, each with as many layers of every kind; empty where all are few."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or ["layer"])
    period = next(
        size for size in range(1, len(kinds) + 1) if all(a == b for a, b in zip(kinds, kinds[size:], strict=False))
    )
    return (2 * period, 4 * period) if depth > 4 * period else ()


def _extrapolated(few: tuple[int, ...], peaks: Sequence[Mapping[Moment, int]], depth: int) -> dict[Moment, int]:
    """Each moment's bytes in a model of `depth` layers, along the line through two shallow ones; their maximum is no line.

    The backward pass through the layers frees activations and makes gradients, layer by layer: between its first and its
    last layers it lies below the line between them.
    """
    ends = few[0] // 2
    small, large = (
        {_from_ends(at, ends, number): size for at, size in peak.items()}
        for number, peak in zip(few, peaks, strict=True)
    )
    return {
        at: small[at] + round((large[at] - small[at]) * (depth - few[0]) / (few[1] - few[0]))
        for at in small
        if at in large
    }


def _from_ends(at: Moment, ends: int, depth: int) -> Moment:
    """A moment with its layer counted from the nearer end; of the layers between, "between"."""
    if not at.part:
        return at
    number = int(at.part)
    below = depth - 1 - number
    return replace(at, part=f"first {number}" if number < ends else f"last {below}" if below < ends else "between")


def _by_phase(peaks: Mapping[Moment, int]) -> dict[str, int]:
    found = {at.phase for at in peaks}
    return {phase: max(peaks[at] for at in peaks if at.phase == phase) for phase in PHASES if phase in found}


def _trace(job: Job, group: Sequence[Batch], layers: int | None) -> _Trace:
    """One step of a model with so many layers."""
    forget_masks()
    allocator = CachingAllocator(expandable=True)
    try:
        with contextlib.ExitStack() as stack:
            for context in (_seeded(), without_arithmetic(job.device.type), masks_as_with_data()):
                stack.enter_context(context)
            stack.enter_context(pretended_group(job.rank, job.parallel.processes))
            model = _model(job, layers)
            strategy = _strategy(job)  # its mesh is made of numbers, which have to have data
            stack.enter_context(tensors_without_data())
            materialize(model)
            tracker = stack.enter_context(Tracker(allocator))
            stack.enter_context(contextlib.closing(strategy))
            tracker.hold(held_tensors(model))
            path = _path(job, model)
            step = prepare(tracker, model, strategy, job.loss(model, path), job.optimizer)
            if path is not None:
                path.watch(step.optimizer)
            batches = [_without_data(batch) for batch in group]
            del model
            for _ in range(1 if job.parallel.processes == 1 else 2):
                step.run(batches)
    finally:
        forget_masks()
    return _Trace(tracker.peaks, allocator.reserved - tracker.peak, frozenset(tracker.unknown))


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The process's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        yield


def _model(job: Job, layers: int | None) -> Any:
    """The model as build() hands it to the strategy, on the meta device."""
    with torch.device("meta"):
        model = shapes_of(job.module, job.dtype, layers=layers)
        if job.bits is not None:
            quantize_shapes(model, job.bits, job.dtype)
        if job.adapter is None:
            model.requires_grad_(True)
            model.float()
        else:
            model = job.adapter(model)
            lighten(model, "cpu" if job.device.type == "cuda" else "cuda")
            if job.device.type == "cuda":
                without_input_casts(model, "cpu")
    if job.checkpointing:
        enable_activation_checkpointing(unwrapped(model))
    return model


def _path(job: Job, model: Any) -> VarlenForward | None:
    kernels = job.kernels
    if kernels == "auto" and not job.parallel.whole_blocks:
        kernels = "portable"
    return assumed_forward_path(unwrapped(model), job.device, autocast=job.autocast, kernels=kernels)


def _strategy(job: Job) -> Strategy:
    """On the CPU, whose tensors a build of torch without CUDA can follow: the same bytes."""
    return build_strategy(
        job.parallel,
        device=torch.device("cpu"),
        autocast=job.autocast,
        scaler=job.scaler,
        use_accelerate=False,
        fp32_master_weights=job.adapter is None,
        plan=tensor_plan,
    )


def _without_data(batch: Any) -> Any:
    """The batch with tensors of the same shapes."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: torch.empty(value.shape, dtype=value.dtype) for name, value in tensors.items()})


@dataclass(frozen=True)
class TrackedStep:
    """Optimizer steps under a tracker that is told of their phases.

    Attributes:
        tracker: that counts.
        strategy, optimizer: of the run.
    """

    tracker: Tracker
    strategy: Strategy
    optimizer: torch.optim.Optimizer

    def run(self, group: Sequence[Batch], max_grad_norm: float = 1.0) -> None:
        """One step: the seam's verbs (ARCHITECTURE.md)."""
        labels = max(1.0, float(sum(batch.num_label_tokens for batch in group)))
        loss = self.strategy.forward_backward(group, labels)
        self.tracker.at("clip")
        self.strategy.update(loss, max_grad_norm)
        self.optimizer.zero_grad(set_to_none=True)


def prepare(
    tracker: Tracker,
    model: Any,
    strategy: Strategy,
    loss: LossFunction,
    optimizer: Callable[[NamedParameters, Any], torch.optim.Optimizer],
) -> TrackedStep:
    """The parts of a step, put together as execution/build.py does; call it inside the tracker.

    Works on real tensors too, which is how a test compares.
    """
    mark_phases(tracker, model)
    strategy.prepare(model, marked(tracker, loss))
    made = optimizer(strategy.named_parameters(model), model)
    strategy.attach(made)
    made.register_step_pre_hook(lambda *_: tracker.at("optimizer"))
    make_state(made)
    gc.collect()
    tracker.at("load")
    tracker.forget_peaks()
    return TrackedStep(tracker, strategy, made)
