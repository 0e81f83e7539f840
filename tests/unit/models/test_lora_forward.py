"""Layers with an adapter: in 4 bit peft's copy of every output goes, and no bit changes; under autocast base and adapter are
one operation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.models import save_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora, without_adapter, without_input_casts
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.lora_forward import lighten

pytest.importorskip("bitsandbytes")
LINEARS = 7 * 2  # of two layers


class Copies(TorchDispatchMode):
    """Counts copies that keep the type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(function).startswith("aten.clone")
        return function(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=64)


def build(folder: Path, **options: Any) -> Any:
    torch.manual_seed(0)
    base = load_causal_lm(str(folder), dtype="bfloat16", load_in_4bit=True)
    model = add_lora(base, r=4, alpha=8, target_modules="all-linear", **options)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.train()


def step(model: Any, *, autocast: bool) -> tuple[int, list[torch.Tensor]]:
    """Copies in a step, and its loss and gradients."""
    ids = torch.arange(3, 35)[None]
    torch.manual_seed(1)  # the same dropout
    with Copies() as copies:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    return copies.count, [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    ("options", "autocast", "checkpointing"),
    [
        ({}, True, False),
        ({}, False, False),
        ({"dropout": 0.3}, True, True),
        ({"bias": "lora_only"}, True, False),
        ({"use_dora": True}, True, False),
    ],
    ids=["plain", "without autocast", "dropout and checkpointing", "bias", "dora"],
)
def test_no_output_is_copied_and_no_bit_changes(folder: Path, options: dict[str, Any], autocast, checkpointing):
    obtained = []
    for ours in (False, True):
        model = build(folder, **options)
        without_input_casts(model, "cpu")
        if checkpointing:
            enable_activation_checkpointing(model.get_base_model())
        if ours:
            lighten(model)
        obtained.append(step(model, autocast=autocast))
    (before, expected), (after, mine) = obtained
    assert len(mine) == len(expected) >= 2 * LINEARS
    assert all(torch.equal(one, other) for one, other in zip(mine, expected, strict=True))
    saved = 0 if options.get("use_dora") else LINEARS * (2 if checkpointing else 1)
    assert before - after == saved


def test_a_layer_copies_nothing_and_an_adapter_that_is_off_is_off(folder: Path):
    model = build(folder)
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    x = torch.randn(5, 64, dtype=torch.bfloat16, requires_grad=True)
    base = layer.base_layer(x)
    lighten(model)
    lighten(model)  # once is enough
    with Copies() as copies:
        on = layer(x)
        on.sum().backward()
    assert copies.count == 0
    with without_adapter(model):
        assert torch.equal(layer(x), base)
    assert not torch.equal(on, base)
    assert torch.equal(layer(x), on)


def gradients(
    folder: Path, dtype: str, *, light: bool, four_bit: bool = False, checkpointing: bool = False, **options: Any
) -> list[torch.Tensor]:
    torch.manual_seed(0)
    base = load_causal_lm(str(folder), dtype=dtype, load_in_4bit=four_bit)
    model = add_lora(base, r=4, alpha=12, target_modules="all-linear", **options).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    without_input_casts(model, "cpu")
    if light:
        lighten(model, "cpu")
    if checkpointing:
        enable_activation_checkpointing(model.get_base_model())
    _, obtained = step(model, autocast=dtype != "float32")
    return obtained


def apart(mine: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    pairs = list(zip(mine[1:], theirs[1:], strict=True))
    return float((sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs)).sqrt())


@pytest.mark.parametrize("four_bit", [False, True], ids=["16 bit", "4 bit"])
def test_one_operation_errs_no_more_than_pefts_many(folder: Path, four_bit: bool):
    """Where autocast is on for the device: against fp32, as an accelerator would compute it."""
    exact = gradients(folder, "float32", light=False, four_bit=four_bit)
    peft, mine = (gradients(folder, "bfloat16", light=light, four_bit=four_bit) for light in (False, True))
    assert not torch.equal(mine[1], peft[1])  # it is another computation
    assert apart(mine, exact) < max(1.1 * apart(peft, exact), 1e-2)
    assert mine[0].item() == pytest.approx(exact[0].item(), rel=2e-3)


def test_recomputed_layers_drop_the_same_numbers(folder: Path):
    once, again = (gradients(folder, "bfloat16", light=True, dropout=0.3, checkpointing=c) for c in (False, True))
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


class Made(TorchDispatchMode):
    """Counts casts of matrices as narrow as an adapter's, and of many tensors at once."""

    def __init__(self) -> None:
        super().__init__()
        self.single, self.together = 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function)
        self.together += name.startswith("aten._foreach_copy_")
        self.single += name.startswith("aten._to_copy") and args[0].dtype is torch.float32 and 4 in args[0].shape
        return function(*args, **(kwargs or {}))


def test_adapters_are_cast_together_once_in_a_step(folder: Path):
    model = light_model(folder)
    enable_activation_checkpointing(model.get_base_model())
    ids = torch.arange(3, 35)[None]
    with Made() as made, torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()
    assert (made.together, made.single) == (1, 0)


def light_model(folder: Path) -> Any:
    torch.manual_seed(0)
    base = load_causal_lm(str(folder), dtype="bfloat16")
    model = add_lora(base, r=4, alpha=12, target_modules="all-linear").train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    without_input_casts(model, "cpu")
    lighten(model, "cpu")
    return model


@pytest.mark.parametrize("between", ["nothing", "an evaluation", "a failed pass"])
def test_no_cast_outlives_a_change_of_the_weights(folder: Path, between: str):
    """Not one that leaves no trace in the version counter either, as fused optimizers make them."""
    model = light_model(folder)
    step(model, autocast=True)
    if between == "an evaluation":
        with torch.no_grad():
            assert model(input_ids=torch.arange(3, 9)[None]).logits.isfinite().all()
    if between == "a failed pass":
        with pytest.raises(IndexError), torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=torch.tensor([[10**6]]))
    fresh = light_model(folder)
    generator = torch.Generator().manual_seed(3)
    for one, other in zip(model.parameters(), fresh.parameters(), strict=True):
        if one.requires_grad:
            one.data = 0.1 * torch.randn(one.shape, generator=generator)
            other.data = one.data.clone()
    layers = [each.get_base_model().model.layers[0].mlp.up_proj for each in (model, fresh)]
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():  # as a stage of a pipeline calls a layer
        assert torch.equal(layers[0](x), layers[1](x))
    model.zero_grad()
    (_, obtained), (_, expected) = (step(each, autocast=True) for each in (model, fresh))
    assert all(torch.equal(one, other) for one, other in zip(obtained, expected, strict=True))


def test_two_passes_forward_before_one_backward(folder: Path):
    """As schedules of pipelines have them: the casts of the second are those of the first."""
    model = light_model(folder)
    enable_activation_checkpointing(model.get_base_model())
    rows = [torch.arange(3, 35)[None], torch.arange(35, 67)[None]]
    for ids in rows:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    expected = [weight.grad for weight in model.parameters() if weight.requires_grad]
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = [model(input_ids=ids, labels=ids).loss for ids in rows]
    for loss in losses:
        loss.backward()
    obtained = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(torch.equal(one, other) for one, other in zip(obtained, expected, strict=True))


def test_weights_that_are_filled_as_their_module_is_called_are_left_to_it(folder: Path):
    """As ZeRO-3 gathers them: before that they are empty."""
    model = add_lora(load_causal_lm(str(folder), dtype="bfloat16"), r=4, alpha=8, target_modules="all-linear")
    layer = model.get_base_model().model.layers[0].mlp.up_proj
    up = layer.lora_B["default"]
    whole = torch.randn_like(up.weight)
    x = torch.randn(1, 5, 64, dtype=torch.bfloat16)
    lighten(model, "cpu")
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        up.weight.data = whole
        expected = layer(x)
        up.weight.data = torch.empty(0)
        up.register_forward_pre_hook(lambda *_: setattr(up.weight, "data", whole))
        up.register_forward_hook(lambda *_: setattr(up.weight, "data", torch.empty(0)))
        assert torch.allclose(layer(x), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"bias": "lora_only"}], ids=["plain", "dora", "bias"])
def test_a_cpu_keeps_every_bit(folder: Path, options: dict[str, Any]):
    model = add_lora(
        load_causal_lm(str(folder), dtype="bfloat16"), r=4, alpha=8, target_modules="all-linear", **options
    )
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    _, before = step(model.train(), autocast=True)
    model.zero_grad()
    lighten(model)
    _, after = step(model, autocast=True)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
