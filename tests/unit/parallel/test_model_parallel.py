"""model_parallel without a GPU: the step of one process over two virtual devices, and no operation that meets both."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from tests.support.models import build_model
from tests.support.parity import CPU, Case, Outcome, loader, take_step
from tests.support.virtual import MixedDevicesError, virtual_devices
from torch import nn

from ai_finetuning.engine.loss import make_document_loss, make_loss
from ai_finetuning.engine.optimizer import build_optimizer
from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.placement import spread
from ai_finetuning.parallel.strategies.device_map import ModelParallel, capacities, memory_bytes
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.planner.layers import modules_of, split_model
from ai_finetuning.planner.memory import Workload

KINDS = ("llama", "stablelm", "gpt_neox", "qwen3_tied", "gemma2")
# Every architecture in full and with LoRA; every way of laying out rows.
CASES = [
    Case(kind, method, data, layers=4)
    for index, kind in enumerate(KINDS)
    for method, data in (
        ("full", ("padded", "packed", "documents")[index % 3]),
        ("lora", ("documents", "padded", "packed")[index % 3]),
    )
]


def device_map_of(kind: str, *, devices: int = 2) -> dict[str, torch.device]:
    """A map over virtual GPUs; every one gets layers, however small the model is."""
    work = Workload(trainable=0, bits=None, frozen_bytes=4, tokens=64, compute_bytes=4)
    capacity = dict.fromkeys(range(devices), 2**31)
    return split_model(build_model(kind, layers=4), work, capacity, checkpointing=False).device_map()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_devices_do_the_step_of_one_without_mixing(case: Case):
    expected = take_step(case, SingleDevice(CPU))
    device_map = device_map_of(case.kind)
    with virtual_devices() as places:
        got = take_step(case, ModelParallel(device_map))
    assert len(places.moves) > 0
    assert set(device_map.values()) == {torch.device("cuda", 0), torch.device("cuda", 1)}
    assert_equal(got, expected)


def assert_equal(got: Outcome, expected: Outcome) -> None:
    assert got.loss == pytest.approx(expected.loss, abs=1e-7)
    assert got.norm == pytest.approx(expected.norm, rel=1e-6)
    assert got.parts.keys() == expected.parts.keys()
    for name, (gradient, weight, _) in expected.parts.items():
        assert torch.allclose(torch.from_numpy(got.parts[name][0]), torch.from_numpy(gradient), rtol=1e-5, atol=1e-7), (
            name
        )
        assert torch.allclose(torch.from_numpy(got.parts[name][1]), torch.from_numpy(weight), atol=5e-6), name


def test_three_devices_do_the_step_of_one():
    case = Case("llama", "full", "documents", layers=4)
    with virtual_devices():
        got = take_step(case, ModelParallel(device_map_of("llama", devices=3)))
    assert_equal(got, take_step(case, SingleDevice(CPU)))


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied"])
def test_a_spread_model_opens_its_document_path_recomputes_and_generates(kind: str):
    """What assemble does, in its order: spread, choose the path, train with gradient checkpointing; then an answer."""
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = build_model(kind, layers=4)
    answer = plain.generate(ids, max_new_tokens=4, do_sample=False)
    batch = loader(Case(kind)).micro_batches(0, 0, 4)[0]
    model = build_model(kind, layers=4)
    with virtual_devices():
        spread(model, device_map_of(kind))
        enable_activation_checkpointing(model)
        path, reason = select_forward_path(model, model.device, autocast=None, kernels="portable")
        assert path is not None, reason
        strategy = ModelParallel(device_map_of(kind))
        strategy.prepare(model.train(), make_document_loss(path))
        loss = float(strategy.forward_backward([batch], batch.num_label_tokens))
        scored, tokens = strategy.evaluate([batch])
        path.close()
        assert torch.equal(model.eval().generate(ids.to(model.device), max_new_tokens=4, do_sample=False).cpu(), answer)
    single = SingleDevice(CPU)
    single.prepare(plain.train(), make_loss(logits_to_keep=True))
    assert loss == pytest.approx(float(single.forward_backward([batch], batch.num_label_tokens)), abs=1e-6)
    assert scored / tokens == pytest.approx(loss, abs=1e-6)
    for (name, p), (_, q) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-6), name


def two_steps(strategy: SingleDevice, change: dict[str, Any]) -> list[tuple[float, float]]:
    """(loss, norm) of two steps; LoRA with whatever `change` adds to it, or Muon on all weights."""
    model = build_model(layers=4)
    if "name" not in change:
        torch.manual_seed(0)
        model = add_lora(model, r=4, alpha=8, **change)
    strategy.prepare(model, make_loss(logits_to_keep=True))
    embeddings = [weight for name, weight in model.named_parameters() if "embed" in name or "lm_head" in name]
    name = change.get("name", "adamw")
    strategy.attach(
        build_optimizer(strategy.named_parameters(model), name=name, learning_rate=1e-3, embeddings=embeddings)
    )
    group, obtained = loader(Case("llama")).micro_batches(0, 0, 4), []
    for _ in range(2):
        loss = strategy.forward_backward(group, sum(batch.num_label_tokens for batch in group))
        update = strategy.update(loss, 1.0)
        obtained.append((update.loss, update.grad_norm))
        model.zero_grad()
    return obtained


@pytest.mark.parametrize(
    "change", [{"use_dora": True}, {"modules_to_save": ["embed_tokens", "lm_head"]}, {"name": "muon"}], ids=str
)
def test_dora_saved_modules_and_muon(change: dict[str, Any]):
    with virtual_devices():
        got = two_steps(ModelParallel(device_map_of("llama")), change)
    for pair, expected in zip(got, two_steps(SingleDevice(CPU), change), strict=True):
        assert pair == pytest.approx(expected, rel=1e-5)


def test_a_removed_boundary_is_noticed():
    """The virtual devices see what they are there for: without the hook of one layer two devices meet."""
    model, device_map = build_model(layers=4), device_map_of("llama")
    crossing = next(name for name, device in device_map.items() if device.index == 1)
    with virtual_devices():
        spread(model, device_map)
        ids = torch.tensor([[5, 6, 7]]).to(model.device)
        model(input_ids=ids)
        model.get_submodule(crossing)._forward_pre_hooks.clear()
        with pytest.raises(MixedDevicesError, match="cuda:0"):
            model(input_ids=ids)


class _LeavesGradientBehind(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return tensor.to(torch.device("cuda", 1))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient


def test_a_mix_in_the_backward_pass_is_noticed():
    with virtual_devices():
        weight = torch.ones(3, device=torch.device("cuda", 0), requires_grad=True)
        loss = _LeavesGradientBehind.apply(weight * weight).sum()
        with pytest.raises(MixedDevicesError, match="aten::mul"):
            loss.backward()


def test_tied_weights_stay_one_weight_on_one_device():
    model, device_map = build_model("qwen3_tied", layers=4), device_map_of("qwen3_tied")
    with virtual_devices():
        spread(model, device_map)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert {device.index for device in device_map.values()} == {0, 1}
        assert device_map["lm_head"] == device_map["model.norm"] == device_map["model.embed_tokens"]


def test_hooks_of_accelerate_give_way():
    """They are there after transformers loads with a map, and would take logits_to_keep to the first device."""
    model = build_model(layers=4)
    add_hook_to_module(model, AlignDevicesHook(execution_device="cpu", io_same_device=True))
    with virtual_devices():
        spread(model, device_map_of("llama"))
    assert not hasattr(model, "_hf_hook")


@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_offloading_is_refused_while_training(place: str):
    device_map = device_map_of("llama") | {"model.layers.3": place}
    with pytest.raises(ModelError, match="model.layers.3") as refusal:
        ModelParallel(device_map)
    assert "max_memory_per_gpu" in refusal.value.ja
    assert "max_memory_per_gpu" in refusal.value.en


def test_sizes_are_read_by_their_unit():
    assert memory_bytes("22GB") == 22 * 10**9
    assert memory_bytes("22GiB") == 22 * 2**30
    assert memory_bytes("1.5 GiB") == 3 * 2**29
    with pytest.raises(ConfigError, match="22G"):
        memory_bytes("22G")


def test_capacities_are_what_is_asked_and_there():
    there = {0: 24 * 2**30, 1: 20 * 2**30, 2: 24 * 2**30}
    assert capacities({1: "22GB", 0: "22GB"}, there) == {0: 22 * 10**9, 1: 20 * 2**30}
    assert capacities(None, there) == there
    with pytest.raises(ConfigError, match="GPU 5"):
        capacities({0: "22GB", 5: "22GB"}, there)
    with pytest.raises(ConfigError, match="qlora"):
        capacities(None, {0: 2**30})


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_a_place(kind: str):
    model = build_model(kind, layers=4)
    front, layers, back = modules_of(model)
    names = [*front, *layers, *back]
    assert names[-1] == "lm_head"
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        assert sum(name.startswith(f"{place}.") for place in names) == 1, name


def test_a_model_without_one_list_of_layers_is_refused():
    model = build_model()
    model.model.more = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(ModelError, match="fsdp"):
        modules_of(model)
