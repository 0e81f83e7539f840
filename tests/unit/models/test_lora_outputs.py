"""4-bit layers with an adapter: peft's copy of every output goes, and no bit changes."""

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
from ai_finetuning.models.lora_outputs import without_output_copies

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
            without_output_copies(model)
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
    without_output_copies(model)
    without_output_copies(model)  # once is enough
    with Copies() as copies:
        on = layer(x)
        on.sum().backward()
    assert copies.count == 0
    with without_adapter(model):
        assert torch.equal(layer(x), base)
    assert not torch.equal(on, base)
    assert torch.equal(layer(x), on)


def test_16_bit_layers_are_left_alone(folder: Path):
    model = add_lora(load_causal_lm(str(folder), dtype="bfloat16"), r=4, alpha=8, target_modules="all-linear")
    without_output_copies(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
