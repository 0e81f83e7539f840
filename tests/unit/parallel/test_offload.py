"""Activations and optimizer states that wait in the host's memory: the same bits, and less on the device.

Both sides are the host here: what is copied, when, and what stays is the same as on a GPU.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.loops import run_of
from tests.support.models import build_model
from tests.support.parity import CPU, Case, loader, loss_of, model_of
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ai_finetuning.engine.loop import fit
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.optimizer import build_optimizer, make_state
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import embedding_weights
from ai_finetuning.parallel.host_states import HostStates
from ai_finetuning.parallel.lane import AtOnce
from ai_finetuning.parallel.saved_activations import SavedActivations
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.weights.state import optimizer_tensors
from ai_finetuning.planner import memory
from ai_finetuning.planner.shape import shape_of

CASE = Case("llama", "full", "documents", rows=24)


def offloading(strategy: Any, what: str) -> SavedActivations:
    """The strategy's own parts, for tensors as small as tests have."""
    saved = SavedActivations(AtOnce(), "cpu", min_bytes=64)
    if what == "activations":
        strategy._saved = saved
    if what == "optimizer":
        strategy.host_states = HostStates(strategy._optimizer, AtOnce(), min_bytes=64, chunk_bytes=40_000)
    return saved


def trained(folder: Path, what: str, case: Case = CASE, checkpointing: bool = False, **settings: Any) -> Any:
    """Metrics of four steps, and weights and optimizer state behind them."""
    autocast = settings.pop("autocast", None)
    strategy = SingleDevice(CPU, autocast=autocast)
    run = run_of(case, strategy, folder, **{"steps": 4} | settings)
    saved = offloading(strategy, what)
    if checkpointing:
        enable_activation_checkpointing(run.model)
    fit(run)
    assert what != "activations" or saved.moved > 0
    rows = [
        {key: row[key] for key in row if key not in ("seconds", "time")}
        for row in read_metrics(folder / "metrics.jsonl")
    ]
    tensors = strategy.tensors(run.model, run.optimizer)
    return rows, {f"{group}/{name}": t.clone() for group, named in tensors.items() for name, t in named.items()}


def assert_same(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1].items():
        assert torch.equal(tensor, other[1][name]), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "recomputed"])
@pytest.mark.parametrize(
    ("case", "autocast"),
    [
        (CASE, None),
        (CASE, torch.bfloat16),
        (Case("gemma2", "lora", "padded", rows=12, dropout=0.1), None),
        (Case("llama", "qlora", "documents", rows=12), None),
    ],
    ids=str,
)
def test_activations_come_back_with_their_bits(case: Case, autocast: Any, checkpointing: bool, tmp_path: Path):
    before, after = (
        trained(tmp_path / what, what, case, checkpointing, autocast=autocast) for what in ("none", "activations")
    )
    assert_same(before, after)


class Counting(AtOnce):
    """Counts what lies on the device: what was fetched and lives."""

    def __init__(self) -> None:
        self.fetched: list[tuple[StorageWeakRef, int]] = []
        self.most = 0

    def back(self, host: Tensor) -> Any:
        data, mark = super().back(host)
        self.fetched.append((StorageWeakRef(data.untyped_storage()), data.nbytes))
        self.most = max(self.most, sum(size for reference, size in self.fetched if not reference.expired()))
        return data, mark


class Watching(SavedActivations):
    """Notes how many bytes of what was saved are on the device whenever something of it is read."""

    def __init__(self, moves: bool, weights: set[int]) -> None:
        self.lane = Counting()
        super().__init__(self.lane, "cpu" if moves else "cuda", min_bytes=64)
        self.weights, self.seen, self.alive = weights, dict[int, tuple[StorageWeakRef, int]](), list[int]()

    def _pack(self, tensor: Tensor) -> Any:
        reference = StorageWeakRef(tensor.untyped_storage())
        if reference.cdata not in self.weights:
            self.seen[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        return super()._pack(tensor)

    def _unpack(self, saved: Any) -> Tensor:
        obtained = super()._unpack(saved)
        there = [*self.seen.values(), *self.lane.fetched]
        self.alive.append(sum(size for reference, size in there if not reference.expired()))
        return obtained


def bytes_on_the_device(case: Case, moves: bool) -> tuple[list[int], int]:
    """Saved bytes there, from read to read of a backward pass, with every layer recomputed; and tokens."""
    model, strategy = model_of(case), SingleDevice(CPU)
    enable_activation_checkpointing(model)
    model.train()
    strategy.prepare(model, loss_of(case, model))
    watching = Watching(moves, {StorageWeakRef(p.untyped_storage()).cdata for p in model.parameters()})
    batch = loader(case).micro_batches(0, 0, case.rows)[0]
    with watching:
        loss = strategy._loss_of(batch)
    torch.autograd.backward(loss)
    return watching.alive, batch.documents().input_ids.numel()


def test_the_device_holds_less_by_what_the_plan_says():
    """Where the plan has its peak: the layers are there that are still to come, and one is computed again."""
    case = Case("llama", "lora", "documents", layers=24)
    (before, tokens), (after, _) = (bytes_on_the_device(case, moves) for moves in (False, True))
    shape = shape_of(build_model("llama", layers=24))
    work = memory.Workload(trainable=0, bits=None, frozen_bytes=4, tokens=tokens, compute_bytes=4)
    whole = memory.estimate(shape, work, checkpointing=True)
    planned = whole.total - memory.offloaded(whole, shape, work, "activations", checkpointing=True).total
    layer = 4 * tokens * 64
    assert planned == (24 - 3) * layer
    # The first read is of the norm behind the layers.
    assert max(before[1:]) - max(after[1:]) == pytest.approx(planned, rel=0.02)
    assert max(after) < 4.5 * layer  # at no time more than a few


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_an_update_part_by_part_is_the_update_of_the_whole(name: str):
    """Weights and moments; at any time few of the moments are on the device, and between updates none."""
    models = [model_of(Case("llama", "full", layers=10)) for _ in range(2)]
    optimizers = [
        build_optimizer(
            list(model.named_parameters()),
            name=name,
            learning_rate=1e-3,
            weight_decay=0.1,
            embeddings=embedding_weights(model),
        )
        for model in models
    ]
    lane = Counting()
    host = HostStates(optimizers[1], lane, min_bytes=1000, chunk_bytes=50_000)
    make_state(optimizers[0])
    make_state(optimizers[1], host.park)
    homes = {id(value) for state in optimizers[1].state.values() for value in state.values()}
    for step in range(3):
        for model in models:
            generator = torch.Generator().manual_seed(step)
            for number, parameter in enumerate(model.parameters()):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
                if number == step:  # a weight that has no part in a step
                    parameter.grad = None
        optimizers[0].step()
        host.step()
        expected, obtained = (optimizer_tensors(optimizer) for optimizer in optimizers)
        assert expected.keys() == obtained.keys()
        assert all(torch.equal(obtained[key], value) for key, value in expected.items())
        for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
            assert torch.equal(one, other)
        assert {id(value) for state in optimizers[1].state.values() for value in state.values()} == homes
    moments = sum(value.nbytes for key, value in obtained.items() if not key.endswith("/step"))
    largest = max(value.nbytes for value in obtained.values())
    assert len(lane.fetched) > 40
    assert lane.most <= 3 * (50_000 + 2 * largest) < moments / 2


def test_a_run_keeps_its_bits_and_goes_on_from_its_checkpoint(tmp_path: Path):
    """A checkpoint holds what the host holds; loaded moments leave the device at once."""
    before, after = (trained(tmp_path / what, what) for what in ("none", "optimizer"))
    assert_same(before, after)
    strategy = SingleDevice(CPU)
    run = run_of(CASE, strategy, tmp_path / "more")
    offloading(strategy, "optimizer")
    tensors = {group: {} for group in ("model", "optimizer")}
    for key, value in after[1].items():
        group, _, name = key.partition("/")
        tensors[group][name] = value
    strategy.load_tensors(run.model, run.optimizer, tensors)
    assert strategy.host_states is not None
    large = [v for state in run.optimizer.state.values() for v in state.values() if v.nbytes >= 64]
    assert large
    assert {id(value) for value in large} == {id(home) for home in strategy.host_states._homes.values()}
    for group, named in strategy.tensors(run.model, run.optimizer).items():
        for name, value in named.items():
            assert torch.equal(value, after[1][f"{group}/{name}"]), name


def test_weights_and_their_16_bit_copies_stay():
    """Autocast holds the copies until the pass ends: to send them would save nothing."""
    layer = torch.nn.Linear(64, 32, bias=False)
    states = torch.randn(8, 64, requires_grad=True) * 2
    saved = SavedActivations(AtOnce(), "cpu", min_bytes=64)
    with torch.autocast("cpu", dtype=torch.bfloat16), saved:
        layer(states)
    assert saved.moved == 8 * 64 * 2  # the input, in 16 bit
    with saved:
        layer(states)
    assert saved.moved == 8 * 64 * 4
    part = layer.weight.detach()  # as layers that are cut read their part
    for known, moved in (((), 32 * 64 * 4), ((part,), 0)):
        saved = SavedActivations(AtOnce(), "cpu", known, min_bytes=64)
        with saved:
            torch.nn.functional.linear(states, part)
        assert saved.moved == moved


def test_a_strategy_moves_what_is_asked_for(tmp_path: Path):
    """By the same call as a run on a GPU."""
    for what in ("none", "activations", "optimizer"):
        strategy = SingleDevice(CPU)
        case = Case("llama", "full", "documents", rows=120, layers=2, vocabulary=4000)
        run = run_of(case, strategy, tmp_path / what, rows=120, steps=1)
        run.state.micro_batch_size = 60
        strategy.offload(what)
        fit(run)
        moments = [value for state in run.optimizer.state.values() for value in state.values()]
        homes = strategy.host_states._homes.values() if strategy.host_states is not None else ()
        assert {id(home) for home in homes} <= {id(value) for value in moments}
        assert bool(homes) == (what == "optimizer")
        assert (strategy._saved is not None) == (what == "activations")


def test_a_tensor_that_is_saved_often_moves_once_and_keeps_its_layout():
    states = torch.randn(40, 30, requires_grad=True) * 2
    saved = SavedActivations(AtOnce(), "cpu", min_bytes=64)
    layouts, unpack = set(), saved._unpack

    def reading(item: Any) -> Tensor:
        obtained = unpack(item)
        layouts.add(obtained.stride())
        return obtained

    saved._unpack = reading  # type: ignore[method-assign]
    with saved:
        total = (states.t() ** 2).sum() + (states[3:, 1:9] ** 3).sum() + (states * states.detach()).sum()
    total.backward()
    assert saved.moved == 40 * 30 * 4
    assert layouts == {(1, 30), (30, 1)}


def test_moments_on_the_device_are_those_of_the_plan(monkeypatch: pytest.MonkeyPatch):
    """Three parts at most: one in use, one on its way in, one on its way out."""
    chunk = 2 * 25_000
    weights = [torch.nn.Parameter(torch.randn(6250)) for _ in range(200)]  # each has moments of one part
    optimizer = build_optimizer([(str(number), weight) for number, weight in enumerate(weights)], learning_rate=1e-3)
    lane = Counting()
    host = HostStates(optimizer, lane, min_bytes=64, chunk_bytes=chunk)
    make_state(optimizer, host.park)
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    host.step()
    monkeypatch.setattr(memory, "OFFLOAD_CHUNK_BYTES", chunk)
    work = memory.Workload(trainable=200 * 6250, bits=None, frozen_bytes=4, tokens=1, compute_bytes=4)
    shape = shape_of(build_model("llama"))
    whole = memory.estimate(shape, work, checkpointing=True)
    planned = whole.total - memory.offloaded(whole, shape, work, "optimizer", checkpointing=True).total
    assert 8 * work.trainable - lane.most == pytest.approx(planned, rel=0.02)


class LateLane:
    """Copies as late as they may be: when somebody waits. Until then what is fetched is not a number, and a tensor of the
    device that is let go before its copy fails, as its memory would be used again there.
    """

    def __init__(self) -> None:
        self.queued: list[tuple[Any, Any]] = []

    def _queue(self, target: Any, source: Any) -> Any:
        self.queued.append((target, source))
        due = len(self.queued)

        class Mark:
            def hold(_) -> None:
                for place in range(due):
                    into, of = self.queued[place]
                    if into is not None:
                        given, wanted = of(), into()
                        assert given is not None, "let go before it was copied"
                        assert wanted is not None, "let go while it was filled"
                        wanted.copy_(given)
                        self.queued[place] = (None, None)

            wait = hold

        return Mark()

    def out(self, data: Tensor, host: Tensor | None = None) -> Any:
        kept = torch.empty_like(data) if host is None else host
        return kept, self._queue(lambda: kept, weakref.ref(data))

    def back(self, host: Tensor) -> Any:
        data = torch.full_like(host, 255) if host.dtype is torch.uint8 else torch.full_like(host, torch.nan)
        return data, self._queue(weakref.ref(data), lambda: host)

    def finish(self) -> None:
        self._queue(lambda: torch.empty(1), lambda: torch.empty(1)).hold()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["saved", "recomputed"])
def test_nothing_is_used_or_let_go_before_its_copy_is_done(checkpointing: bool):
    """Also what is fetched and then not used: a result that is no part of the loss."""
    gradients = []
    case = Case("llama", "full", "documents", layers=6)
    for lane in (None, LateLane()):
        model, strategy = model_of(case), SingleDevice(CPU)
        if checkpointing:
            enable_activation_checkpointing(model)
        model.train()
        loss_alone, unused = loss_of(case, model), []

        def loss(model: Any, batch: Any, alone: Any = loss_alone, unused: list[Tensor] = unused) -> Tensor:
            unused.append(model.get_input_embeddings().weight[:50].exp())
            total = alone(model, batch)
            unused.append((total * torch.ones(50, 50)).exp())
            return total + (total * torch.ones(50, 50)).tanh().sum()

        strategy.prepare(model, loss)
        if lane is not None:
            strategy._saved = SavedActivations(lane, "cpu", min_bytes=64)
        for _ in range(2):
            strategy.forward_backward(loader(case).micro_batches(0, 0, case.rows), 100.0)
            unused.clear()
        if strategy._saved is not None and lane is not None:
            with strategy._saved:
                pass
            lane.finish()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_an_update_uses_and_lets_go_nothing_before_its_copy_is_done():
    states = []
    for lane in (None, LateLane()):
        model = model_of(Case("llama", "full", layers=4))
        optimizer = build_optimizer(list(model.named_parameters()), learning_rate=1e-3)
        host = HostStates(optimizer, lane, min_bytes=64, chunk_bytes=50_000) if lane is not None else None
        make_state(optimizer, None if host is None else host.park)
        for step in range(3):
            generator = torch.Generator().manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            (host or optimizer).step()
        if host is not None and lane is not None:
            host.settle()
            lane.finish()
        states.append(optimizer_tensors(optimizer) | dict(model.named_parameters()))
    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())
