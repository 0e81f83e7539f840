"""Cutting a model into stages: the split, the refusals, and how long processes wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.support.models import build_model
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

from ai_finetuning.engine.loss import make_loss
from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.strategies.pipeline import SCHEDULES, validate_pipeline
from ai_finetuning.parallel.strategies.stages import StageSplitter, spans_of, split_layers, validate_stages

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("layers", "stages", "before", "after", "sizes"),
    [
        (32, 4, 0, 0, [8, 8, 8, 8]),
        (32, 4, 2, 2, [7, 9, 9, 7]),  # embedding and head weigh as two layers each
        (7, 2, 0, 0, [3, 4]),
        (4, 4, 10, 10, [1, 1, 1, 1]),  # never a stage without a layer
        (6, 2, 0, 4, [5, 1]),
    ],
)
def test_split_is_balanced(layers: int, stages: int, before: float, after: float, sizes: list[int]):
    assert split_layers([1.0] * layers, stages, before=before, after=after) == sizes


@pytest.mark.parametrize(
    ("kind", "sizes", "schedule", "words"),
    [
        ("llama", Sizes(pp=4), "1F1B", ("2 layers", "4 processes", "2 or less")),
        ("llama", Sizes(pp=2), "ZBV", ("2 layers", "4 stages", "1 or less")),
        ("llama", Sizes(pp=2), "2F2B", ("2F2B", "GPipe")),
        ("llama", Sizes(pp=2, tp=2), "1F1B", ("pipeline_parallel_size 2", "tensor_parallel_size 2")),
        ("gpt2", Sizes(pp=1), "ZBV", ("gpt2", "1F1B")),
    ],
)
def test_what_cannot_be_a_pipeline_is_refused_by_its_configuration(
    kind: str, sizes: Sizes, schedule: str, words: tuple[str, ...]
):
    with pytest.raises(ConfigError) as refusal:
        validate_pipeline(build_model(kind).config, sizes, schedule)
    for word in words:
        assert word in refusal.value.en
    validate_pipeline(build_model(kind).config, Sizes(pp=2))


@pytest.mark.parametrize("schedule", ["InterleavedZeroBubble", "ZBV"])
def test_zero_bubble_with_fsdp_is_refused(schedule: str):
    """Gradients were off by 0.78 and the norm by 0.14, without an error."""
    config = build_model("llama", layers=4).config
    validate_pipeline(config, Sizes(pp=2, dp=2), schedule)
    with pytest.raises(ConfigError, match="fsdp"):
        validate_pipeline(config, Sizes(pp=2, dp=2), schedule, sharded=True)


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied"])
def test_the_stage_with_the_head_has_fewer_layers_and_that_with_the_embedding_has_not(kind: str):
    """A pipeline waits for its slowest stage: a head counts as what it multiplies, tied or not, an embedding is only
    looked up.
    """
    layer = build_model(kind, layers=1).get_decoder().layers[0]
    per_layer = sum(p.numel() for p in layer.parameters())
    tokens = 2 * per_layer // layer.input_layernorm.weight.numel()  # a head of two layers
    model = build_model(kind, layers=8, vocab_size=tokens)
    layers, before, after = StageSplitter(model, make_loss(logits_to_keep=True), autocast=None, device=CPU).costs()
    assert before == 0
    assert after == pytest.approx(2 * per_layer, rel=0.1)
    assert split_layers(layers, 2, before=before, after=after) == [5, 3]


def test_a_model_whose_later_layers_need_the_embedding_is_refused():
    """The last layer adds the embedding again (as Gemma 3n's layers do): a later stage does not have it."""
    model, loss = build_model("llama", layers=4), make_loss(logits_to_keep=True)
    spans = spans_of([2, 2])
    staging = StageSplitter(model, loss, autocast=None, device=CPU)
    validate_stages(staging, spans)
    seen: list[torch.Tensor] = []
    model.model.embed_tokens.register_forward_hook(lambda _, __, out: seen.append(out))

    class Adding(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, hidden: torch.Tensor, **others: Any) -> torch.Tensor:
            return self.inner(hidden, **others) + seen.pop()

    model.model.layers[3] = Adding(model.model.layers[3])

    def forgetful(model: Any, batch: Any) -> torch.Tensor:
        seen[:] = [torch.zeros(1)]
        return loss(model, batch)

    with pytest.raises(ModelError, match="different loss|損失"):
        validate_stages(StageSplitter(model, forgetful, autocast=None, device=CPU), spans)


def test_a_pruned_model_holds_its_stage_only():
    model = build_model("qwen3_tied", layers=4)
    weight, whole = model.lm_head.weight, {name: p.numel() for name, p in model.named_parameters()}
    staging = StageSplitter(model, make_loss(logits_to_keep=True), autocast=None, device=CPU)
    staging.prune([spans_of([1, 1, 2])[1]])
    held = dict(model.named_parameters())
    assert set(held) == {name for name in whole if name.startswith("model.layers.1.")}
    assert weight.numel() == 0, "a reference kept the head in memory"


@pytest.fixture
def four_processes() -> Iterator[dist.ProcessGroup]:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield dist.group.WORLD
    dist.destroy_process_group()


# Time of an action where a layer's backward pass takes as long for inputs as for weights, and as long as the forward
# pass.
COST = {"FORWARD": 1, "FULL_BACKWARD": 2, "BACKWARD_INPUT": 1, "BACKWARD_WEIGHT": 1}


def idle_share(order: dict[int, list[Any]], stages: int) -> float:
    """Share of the processes' time that an order of actions leaves them waiting: every action starts when what it
    needs is there.
    """
    ends: dict[tuple[str, int, int], int] = {}
    clock = dict.fromkeys(order, 0)
    waiting = {rank: [a for a in actions if a and a.computation_type.name in COST] for rank, actions in order.items()}
    busy, before = 0, -1
    taken: Counter[tuple[str, int]] = Counter()

    def needs(kind: str, stage: int, number: int) -> list[tuple[str, int, int]]:
        if kind == "FORWARD":
            return [("FORWARD", stage - 1, number)] if stage else []
        if kind == "BACKWARD_WEIGHT":
            return [("BACKWARD", stage, number)]
        return [("FORWARD", stage, number), *([("BACKWARD", stage + 1, number)] if stage + 1 < stages else [])]

    while any(waiting.values()):
        assert busy > before, "every process waits"
        before = busy
        for rank, actions in waiting.items():
            while actions:
                action = actions[0]
                kind, stage = action.computation_type.name, action.stage_index
                # Counted: torch labels the forwards of 1F1B's last stage from 1 on (every stage takes them in order).
                number = taken[kind, stage]
                expected = needs(kind, stage, number)
                if not all(need in ends for need in expected):
                    break
                clock[rank] = max([clock[rank], *(ends[need] for need in expected)]) + COST[kind]
                busy += COST[kind]
                taken[kind, stage] += 1
                name = "BACKWARD" if kind in ("FULL_BACKWARD", "BACKWARD_INPUT") else kind
                ends[name, stage, number] = clock[rank]
                actions.pop(0)
    return 1 - busy / (len(order) * max(clock.values()))


@pytest.mark.parametrize("micro_batches", [4, 8, 16, 32])
def test_waiting_follows_the_bubble_formula(four_processes: dist.ProcessGroup, micro_batches: int):
    """(P - 1) / (M + P - 1), stages of half the size halve it, and splitting the backward pass goes below that."""
    processes, shares = 4, {}
    for name, plan in SCHEDULES.items():
        count = processes * plan.stages
        mine = [0, count - 1] if plan.vee else list(range(0, count, processes))
        stages = [PipelineStage(torch.nn.Linear(1, 1), index, count, torch.device("cpu")) for index in mine]
        assert plan.count(micro_batches, processes) == micro_batches
        schedule = plan.kind(stages if plan.stages > 1 else stages[0], micro_batches, loss_fn=torch.sum)
        shares[name] = idle_share(schedule.pipeline_order, count)
    bubble = processes - 1
    assert shares["GPipe"] == pytest.approx(bubble / (micro_batches + bubble))
    assert shares["1F1B"] == pytest.approx(bubble / (micro_batches + bubble))
    assert shares["Interleaved1F1B"] == pytest.approx(bubble / (2 * micro_batches + bubble))
    assert shares["InterleavedZeroBubble"] < shares["Interleaved1F1B"]
    assert shares["ZBV"] < shares["1F1B"]
