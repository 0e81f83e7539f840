"""Models of bf16 on a GPU that has fp16 only."""

from __future__ import annotations

import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from ai_finetuning.engine.precision import resolve_precision
from ai_finetuning.errors import ModelError
from ai_finetuning.execution.resolve import validate_precision
from ai_finetuning.models.half_precision import risk_of_fp16


def test_a_gpu_without_bf16_refuses_what_overflows_and_warns_of_what_was_made_in_bf16(monkeypatch, logged):
    """A T4 computes in fp16: Gemma would skip every step, and a bf16 Llama may."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    old = resolve_precision("auto", fp16=True, device=torch.device("cuda"))
    with pytest.raises(ModelError, match="gemma2"):
        validate_precision(Gemma2Config(), old)
    validate_precision(LlamaConfig(dtype=torch.bfloat16), old)
    assert "skipped" in logged()
    for precision in (old, resolve_precision("fp32", fp16=False, device=torch.device("cuda"))):
        validate_precision(LlamaConfig(dtype=torch.float16), precision)
    assert logged().count("skipped") <= 1
    validate_precision(Gemma2Config(dtype=torch.bfloat16), precision)  # in fp32
    assert risk_of_fp16(LlamaConfig()) is None
