"""Several devices of one process, and what waits on the host: the simulated bytes of each device are those of real tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.support.models import build_model
from tests.support.tracked import batch, job, real_step
from tests.support.virtual import virtual_devices

from ai_finetuning.data.collate import Batch
from ai_finetuning.parallel.plan import ParallelPlan
from ai_finetuning.planner.layers import modules_of, split_model
from ai_finetuning.planner.memory import Workload
from ai_finetuning.planner.simulate import Job, simulate, simulate_devices

LIMIT = 0.02
GROUP = [batch(2, 256), batch(2, 128)]


def spread(kind: str, counts: tuple[int, ...] | None = None, **options: Any) -> Job:
    """A step of a model whose layers lie over devices, with an evaluation.

    Args:
        counts: layers on each device, as sizes that the user gives lead to; None: the balanced map of four layers over two.
    """
    module = build_model(kind, layers=4 if counts is None else sum(counts), hidden_size=128)
    if counts is None:
        work = Workload(trainable=0, bits=None, frozen_bytes=4, tokens=2 * 256, compute_bytes=4)
        places = split_model(module, work, dict.fromkeys(range(2), 2**30), checkpointing=False).devices
    else:
        front, layers, back = modules_of(module)
        numbers = [device for device, count in enumerate(counts) for _ in range(count)]
        last = 0 if module.config.tie_word_embeddings else numbers[-1]
        places = {**dict.fromkeys(front, 0), **dict(zip(layers, numbers, strict=True)), **dict.fromkeys(back, last)}
    return replace(
        job(module, **options),
        device_map={name: torch.device("cuda", number) for name, number in places.items()},
        parallel=ParallelPlan("model_parallel"),
        evaluation=[batch(2, 200)],
    )


# Virtual devices are GPUs to the loop over documents, and CPUs without data are not: on padded rows both take one way.
CASES = {
    "balanced": lambda: spread("llama", full=True, kernels="plain"),
    "one and three layers": lambda: spread("llama", (1, 3), dropout=0.05, kernels="plain"),
    "tied, three devices": lambda: spread("qwen3_tied", (2, 1, 1), kernels="plain"),
    "Gemma 2, its own attention": lambda: spread("gemma2", (2, 2), full=True),
}


@pytest.mark.parametrize(
    "name",
    ["balanced", *(pytest.param(name, marks=pytest.mark.slow) for name in CASES if name != "balanced")],
)
def test_each_device_holds_what_was_simulated(name: str):
    work = CASES[name]()
    told = simulate_devices(work, GROUP)
    with virtual_devices() as places:
        real = real_step(work, GROUP, places=places)
    assert [timeline.device for timeline in told] == sorted(real.devices)
    assert len(told) >= 2
    for timeline in told:
        assert not timeline.unknown
        held = real.devices[timeline.device].by_phase()
        assert {"load", "backward", "evaluation"} <= held.keys()
        for phase, size in held.items():
            assert timeline.phases[phase] == pytest.approx(size, rel=LIMIT), (timeline.device, phase)


def test_deep_models_are_told_device_by_device():
    """Each device has a line of its own: here one with few layers, all of which are computed, and one with many."""
    work = replace(spread("llama", (2, 7), full=True, checkpointing=True), device=torch.device("cuda"))
    told, whole = simulate_devices(work, GROUP[:1] * 2), simulate_devices(work, GROUP[:1] * 2, all_layers=True)
    assert (told[0].layers, whole[0].layers) == ((2 + 2, 2 + 4), ())
    for few, every in zip(told, whole, strict=True):
        for phase, held in every.phases.items():
            assert few.phases[phase] == pytest.approx(held, rel=0.005), (few.device, phase)


def offloaded(what: str, **options: Any) -> Job:
    layers = 8 if options.get("checkpointing") else 3
    return replace(job(build_model("llama", layers=layers, hidden_size=256, vocab_size=2000), **options), offload=what)


WAITING: dict[str, tuple[str, dict[str, Any], list[Batch]]] = {
    "activations": ("activations", {"dropout": 0.05}, [batch(2, 512)]),
    "activations, recomputed": ("activations", {"full": True, "checkpointing": True}, [batch(2, 512)]),
    "optimizer": ("optimizer", {"full": True}, [batch(1, 64)]),
    "optimizer, Muon": ("optimizer", {"full": True, "optimizer": "muon"}, [batch(1, 64)]),
}


@pytest.mark.parametrize(
    "name", ["optimizer", *(pytest.param(name, marks=pytest.mark.slow) for name in WAITING if name != "optimizer")]
)
def test_what_waits_on_the_host_is_not_on_the_device(name: str):
    """In each phase, and so does what the bytes of the device fall by."""
    what, options, group = WAITING[name]
    without, told = (simulate(offloaded(each, **options), group, all_layers=True) for each in ("none", what))
    phases = [real_step(offloaded(each, **options), group).by_phase() for each in ("none", what)]
    for phase, held in phases[1].items():
        assert told.phases[phase] == pytest.approx(held, rel=LIMIT), phase
    changed = "forward" if what == "activations" else "load"
    moved = phases[0][changed] - phases[1][changed]
    assert moved > 0.05 * phases[0][changed]
    assert without.phases[changed] - told.phases[changed] == pytest.approx(moved, rel=LIMIT)
