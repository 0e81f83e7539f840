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

from ai_finetuning.models.adapters import add_lora, write_adapter

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
