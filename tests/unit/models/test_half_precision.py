"""Models of bf16 on a GPU that has fp16 only."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import save_tiny_model
from transformers import Gemma2Config, LlamaConfig

from ai_finetuning.engine.precision import resolve_precision
from ai_finetuning.errors import ModelError
from ai_finetuning.execution.resolve import validate_precision
from ai_finetuning.models import loading
from ai_finetuning.models.half_precision import risk_of_fp16, without_overflow


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


def test_weights_in_fp16_are_refused_without_autocast_too():
    """A frozen base computes in its own dtype in an fp32 run."""
    plain = resolve_precision("fp32", fp16=False, device=torch.device("cuda"))
    with pytest.raises(ModelError, match="model.dtype: float16"):
        validate_precision(Gemma2Config(), plain, torch.float16)
    validate_precision(Gemma2Config(), plain, torch.float32)
    validate_precision(LlamaConfig(), plain, torch.float16)


def test_bf16_that_a_gpu_does_not_have_is_said_to_be_missing(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: False)
    obtained = resolve_precision("bf16", fp16=True, device=torch.device("cuda"))
    assert (obtained.name, obtained.scaler) == ("fp16", True)
    assert obtained.reason_en.startswith("this GPU has no bf16")


def test_a_model_that_overflows_is_loaded_in_fp32_where_there_is_no_bf16(tmp_path, monkeypatch, logged):
    """For answers and evaluations, which nobody refuses."""
    monkeypatch.setattr(loading, "sixteen_bit", lambda device: torch.float16)
    for kind, expected in (("gemma2", torch.float32), ("llama", torch.float16)):
        save_tiny_model(tmp_path / kind, kind)
        model = loading.load_causal_lm(str(tmp_path / kind), device=torch.device("cpu"))
        assert next(model.parameters()).dtype is expected
    assert logged().count("gemma2 overflows in fp16: loading in fp32") == 1
    assert without_overflow(torch.float16, "gemma3_text", asked=True) is torch.float16
    assert "its answers may be broken" in logged()
