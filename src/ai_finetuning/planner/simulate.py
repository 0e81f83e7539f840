"""The memory of a training step, exactly: the run's own step on tensors that hold no data.

Model, adapter, strategy, loss and optimizer are the run's own; weights are never read and nothing is computed, so that a
model that does not fit can be simulated, in seconds. What is counted is what tensors hold (planner/tracker.py); what a
GPU's allocator takes for it beside that is modelled (planner/allocator.py).
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.checkpoint.background import HostCopy, all_finite
from ..engine.optimizer import NamedParameters, make_state
from ..kernels.attention import forget_masks
from ..kernels.stand_in import without_arithmetic
from ..models.activation_checkpointing import enable_activation_checkpointing
from ..models.adapters import without_input_casts
from ..models.documents import VarlenForward, assumed_forward_path
from ..models.lora_forward import lighten
from ..models.parts import decoder_layers, unwrapped
from ..models.placement import DeviceMap
from ..models.plans import tensor_plan
from ..models.quantized import held_tensors
from ..parallel.batch import Batch, LossFunction
from ..parallel.build import build_strategy
from ..parallel.lane import AtOnce, Mark
from ..parallel.plan import ParallelPlan
from ..parallel.strategies.distributed import DataParallel
from ..parallel.strategies.shard import sharding_for
from ..parallel.strategy import Strategy
from ..system.collector import as_usual
from ._upstream import masks_as_with_data, pretended_group, tensors_without_data
from .allocator import CachingAllocator
from .blank import materialize, quantize_shapes, shapes_of
from .layers import layer_names
from .phases import Timeline, mark_phases, marked
from .shallow import Choice, Peaks, Span, choices, extrapolated, period_of
from .tracker import HOST, Held, Tracker


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
        device_map: GPU of each module, under model_parallel.
        offload: what waits in the host's memory: none, activations or optimizer.
        evaluation: batches to evaluate, of one process.
        save_in_background: checkpoints are written from a copy in the host's memory.
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
    device_map: DeviceMap | None = None
    offload: str = "none"
    evaluation: Sequence[Batch] = ()
    save_in_background: bool = True


@dataclass(frozen=True)
class _Trace:
    """What one simulated step held on each device, in moments, and what its allocator took beyond the peak."""

    peaks: Peaks
    overhead: Mapping[Hashable, int]
    unknown: frozenset[str]


def simulate(job: Job, group: Sequence[Batch], *, all_layers: bool = False) -> Timeline:
    """The bytes of a training step on a group of micro-batches, and of what comes between steps, on the device that holds
    most; the process's tensors and settings stay as they are.

    Args:
        job: the step.
        group: micro-batches of one process, of any values: shapes and numbers of labels count.
        all_layers: never tell deep models from shallow ones of the same kind.
    """
    return max(simulate_devices(job, group, all_layers=all_layers), key=lambda timeline: timeline.peak)


def simulate_devices(job: Job, group: Sequence[Batch], *, all_layers: bool = False) -> list[Timeline]:
    """The same of each device, in the order of the map; of one where there is none."""
    as_usual()  # tensors in cycles are freed as in the run
    began = time.perf_counter()
    spans = _spans(job)
    two = None if all_layers or job.parallel.sizes.pp > 1 else choices(spans, period_of(job.module.config))
    traces = [_trace(job, group, choice) for choice in two or (None,)]
    peaks = traces[0].peaks if two is None else extrapolated(spans, two, [trace.peaks for trace in traces])
    layers = () if two is None else tuple(len(choice.kept) for choice in two)
    seconds = time.perf_counter() - began
    told = []
    for device in sorted(peaks, key=str):
        phases = Held(peaks=dict(peaks[device])).by_phase()
        reserved = max(phases.values()) + traces[-1].overhead[device]
        number = device if isinstance(device, int) else None
        told.append(Timeline(phases, reserved, layers, tuple(sorted(traces[-1].unknown)), seconds, number))
    return told


def _spans(job: Job) -> list[Span]:
    """The layers, by where they lie; empty for a model without a list of them."""
    layers = decoder_layers(job.module)
    if layers is None:
        return []
    if job.device_map is None:
        return [Span("", 0, len(layers))]
    numbers = [job.device_map[name].index or 0 for name in layer_names(job.module)]
    spans: list[Span] = []
    for number, device in enumerate(numbers):
        if spans and spans[-1].device == device:
            spans[-1] = replace(spans[-1], count=spans[-1].count + 1)
        else:
            spans.append(Span(device, number, 1))
    return spans


def _map_of(job: Job, choice: Choice | None) -> dict[str, torch.device] | None:
    """The map of what is computed, with devices of the CPU for the GPUs that it names."""
    if job.device_map is None:
        return None
    places = {name: torch.device("cpu", device.index or 0) for name, device in job.device_map.items()}
    if choice is None:
        return places
    names = layer_names(job.module)
    numbers = {names[number]: names[place] for place, number in enumerate(choice.kept)}
    return {numbers.get(name, name): device for name, device in places.items() if name not in names or name in numbers}


def _trace(job: Job, group: Sequence[Batch], choice: Choice | None) -> _Trace:
    """One step of the layers of a choice, or of all."""
    forget_masks()
    device_map = _map_of(job, choice)
    try:
        with contextlib.ExitStack() as stack:
            for context in (_seeded(), without_arithmetic(job.device.type), masks_as_with_data()):
                stack.enter_context(context)
            stack.enter_context(pretended_group(job.rank, job.parallel.processes))
            model = _model(job, choice)
            strategy = _strategy(job, device_map)  # its mesh is made of numbers, which have to have data
            stack.enter_context(tensors_without_data())
            materialize(model, device_map)
            several = {} if device_map is None else {"device_of": _device_of}
            tracker = stack.enter_context(Tracker(partial(CachingAllocator, expandable=True), **several))
            stack.enter_context(contextlib.closing(strategy))
            tracker.hold(held_tensors(model))
            path = _path(job, model)
            step = prepare(tracker, model, strategy, job.loss(model, path), job.optimizer, offload=job.offload)
            if path is not None:
                path.watch(step.optimizer)
            _take(job, step, [_without_data(batch) for batch in group])
            del model
    finally:
        forget_masks()
    devices = tracker.devices
    overhead = {
        name: held.allocator.reserved - held.peak for name, held in devices.items() if held.allocator is not None
    }
    return _Trace({name: held.peaks for name, held in devices.items()}, overhead, frozenset(tracker.unknown))


def _take(job: Job, step: TrackedStep, group: Sequence[Batch]) -> None:
    """Steps, and what comes between them."""
    for _ in range(1 if job.parallel.processes == 1 else 2):
        step.run(group)
    step.save(job.save_in_background, host=job.device.type == "cuda")
    if job.evaluation:
        step.evaluate([_without_data(batch) for batch in job.evaluation])


def _device_of(tensor: Tensor) -> Hashable:
    """The number of a tensor's device; what has none waits in the host's memory."""
    return HOST if tensor.device.index is None else tensor.device.index


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """The process's random numbers stay as they were."""
    with torch.random.fork_rng(devices=[]):
        yield


def _model(job: Job, choice: Choice | None) -> Any:
    """The model as build() hands it to the strategy, on the meta device."""
    with torch.device("meta"):
        model = shapes_of(job.module, job.dtype, layers=None if choice is None else choice.kept)
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


def _strategy(job: Job, device_map: DeviceMap | None) -> Strategy:
    """On the CPU, whose tensors a build of torch without CUDA can follow: the same bytes."""
    masters = job.adapter is None
    strategy = build_strategy(
        job.parallel,
        device=device_map or torch.device("cpu"),
        autocast=job.autocast,
        scaler=job.scaler,
        use_accelerate=False,
        fp32_master_weights=masters,
        plan=tensor_plan,
    )
    if isinstance(strategy, DataParallel):
        strategy.sharding = sharding_for(job.device, job.autocast, fp32_master_weights=masters)
    return strategy


def _without_data(batch: Any) -> Any:
    """The batch with tensors of the same shapes."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    return replace(batch, **{name: torch.empty(value.shape, dtype=value.dtype) for name, value in tensors.items()})


@dataclass(frozen=True)
class TrackedStep:
    """Optimizer steps under a tracker that is told of their phases.

    Attributes:
        tracker: that counts.
        model, strategy, optimizer: of the run.
    """

    tracker: Tracker
    model: Any
    strategy: Strategy
    optimizer: torch.optim.Optimizer

    def run(self, group: Sequence[Batch], max_grad_norm: float = 1.0) -> None:
        """One step: the seam's verbs (ARCHITECTURE.md)."""
        labels = max(1.0, float(sum(batch.num_label_tokens for batch in group)))
        loss = self.strategy.forward_backward(group, labels)
        self.tracker.at("clip")
        self.strategy.update(loss, max_grad_norm)
        self.optimizer.zero_grad(set_to_none=True)

    def evaluate(self, batches: Sequence[Batch]) -> None:
        """What lies beside the weights and moments while a process evaluates its share."""
        with self.tracker.only("evaluation"):
            self.strategy.evaluate(list(batches) * self.strategy.data_size)

    def save(self, background: bool, *, host: bool) -> None:
        """What a checkpoint takes until it is on disk (engine/checkpoint/background.py).

        Args:
            background: it is written from a copy.
            host: that copy lies elsewhere than what is counted.
        """
        with self.tracker.only("save"):
            tensors = self.strategy.tensors(self.model, self.optimizer)
            with self.tracker.on_host() if host and background else contextlib.nullcontext():
                all_finite(HostCopy().of(tensors) if background else tensors)


class _HostLane(AtOnce):
    """Copies, of which those in the host's memory are not counted."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def out(self, data: Tensor, host: Tensor | None = None) -> tuple[Tensor, Mark]:
        """A copy that is not counted."""
        with self._tracker.on_host():
            return super().out(data, host)


def prepare(
    tracker: Tracker,
    model: Any,
    strategy: Strategy,
    loss: LossFunction,
    optimizer: Callable[[NamedParameters, Any], torch.optim.Optimizer],
    *,
    offload: str = "none",
) -> TrackedStep:
    """The parts of a step, put together as execution/build.py does; call it inside the tracker.

    Works on real tensors too, which is how a test compares.
    """
    mark_phases(tracker, model)
    strategy.prepare(model, marked(tracker, loss))
    made = optimizer(strategy.named_parameters(model), model)
    strategy.attach(made)
    if offload != "none":
        strategy.offload(offload, _HostLane(tracker))
    made.register_step_pre_hook(lambda *_: tracker.at("optimizer"))
    host = strategy.host_states
    make_state(made, None if host is None else host.park)
    gc.collect()
    tracker.at("load")
    tracker.forget_peaks()
    return TrackedStep(tracker, model, strategy, made)
