"""Adapters written from their weights alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from packaging.version import Version
from safetensors.torch import load_file
from tests.support.models import build_model
from torch.utils._python_dispatch import TorchDispatchMode

from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora, without_input_casts, write_adapter

# Trained, and not in the file: fixed by 0.21.
forgets_biases = pytest.mark.skipif(
    Version(peft.__version__) < Version("0.21"), reason=f"peft {peft.__version__} forgets biases that it trained"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        pytest.param({"bias": "lora_only"}, marks=forgets_biases),
    ],
    ids=lambda o: "-".join(o) or "plain",
)
def test_an_adapter_is_written_as_peft_writes_it(options: dict[str, Any], tmp_path: Path):
    model = add_lora(build_model("qwen2"), r=4, alpha=8, target_modules="all-linear", **options)
    trained = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    for place in ("ours", "theirs"):
        (tmp_path / place).mkdir()
    write_adapter(tmp_path / "ours", model, trained)
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    files = [(tmp_path / place / "adapter_config.json").read_text(encoding="utf-8") for place in ("ours", "theirs")]
    assert files[0] == files[1]


class Casts(TorchDispatchMode):
    """Counts copies into another type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += str(function).startswith("aten._to_copy")
        return function(*args, **(kwargs or {}))


def autocast_step(*, casts: bool, checkpointing: bool = False, **options: Any) -> tuple[int, list[torch.Tensor]]:
    """Copies of a LoRA step in bf16 on a CPU, and its loss and gradients."""
    torch.manual_seed(0)
    model = add_lora(build_model("llama").to(torch.bfloat16), r=4, alpha=8, target_modules="all-linear", **options)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    if checkpointing:
        enable_activation_checkpointing(model.get_base_model())
    if not casts:
        without_input_casts(model, "cpu")
    ids = torch.arange(3, 35)[None]
    model.train()
    with Casts() as counted:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
    return counted.count, [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "options", [{}, {"checkpointing": True}, {"use_dora": True}], ids=["plain", "checkpointing", "dora"]
)
def test_inputs_left_to_autocast_change_no_bit(options: dict[str, Any]):
    """peft turns them into fp32, and autocast back: seven layers in each of two blocks, in both passes."""
    before, expected = autocast_step(casts=True, **options)
    after, obtained = autocast_step(casts=False, **options)
    assert len(obtained) == len(expected) > 10
    for mine, theirs in zip(obtained, expected, strict=True):
        assert torch.equal(mine, theirs)
    assert after == before if options.get("use_dora") else after <= before - 3 * 14


def test_a_model_that_is_used_without_autocast_casts_its_inputs():
    """As a user's own inference does; its adapter is fp32."""
    model = add_lora(build_model("llama").to(torch.bfloat16), r=4, alpha=8, target_modules="all-linear")
    without_input_casts(model, "cpu")
    with torch.no_grad():
        assert model(input_ids=torch.arange(3, 9)[None]).logits.isfinite().all()
