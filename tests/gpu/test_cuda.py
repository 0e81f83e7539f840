"""The main job on a CUDA device, against the CPU: `make test-gpu` where there is one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.support.models import save_tiny_model
from tests.support.runs import ROWS, losses, train_full, train_lora, training, weights_digest

from ai_finetuning import (
    DataConfig,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    QuantizationOptimizer,
    get_gpu_memory_info,
)
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.quantized import METHODS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def numbers(folder: Path) -> list[float]:
    return [float.fromhex(item) for item in losses(folder)]


def test_full_fine_tuning_in_fp32_follows_the_cpu(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    train_full(tiny_model_dir, tmp_path / "cuda")
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        train_full(tiny_model_dir, tmp_path / "cpu")
    assert numbers(tmp_path / "cuda") == pytest.approx(numbers(tmp_path / "cpu"), abs=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_stays_near_fp32(tiny_model_dir: Path, tmp_path: Path, precision: str):
    train_full(tiny_model_dir, tmp_path / "exact")
    train_full(tiny_model_dir, tmp_path / precision, runtime={"precision": precision})
    assert numbers(tmp_path / precision) == pytest.approx(numbers(tmp_path / "exact"), rel=0.02)


def test_a_stopped_run_resumes_to_the_same_bits(tiny_model_dir: Path, tmp_path: Path, monkeypatch):
    from ai_finetuning.errors import PreemptedError

    train_lora(tiny_model_dir, tmp_path / "whole")
    monkeypatch.setenv("AIFT_FAULT", "step:term@7")
    with pytest.raises(PreemptedError):
        train_lora(tiny_model_dir, tmp_path / "stopped")
    monkeypatch.delenv("AIFT_FAULT")
    train_lora(tiny_model_dir, tmp_path / "stopped", resume="auto")
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert weights_digest(tmp_path / "whole") == weights_digest(tmp_path / "stopped")


@pytest.mark.parametrize("four_bit", [True, False])
def test_qlora_trains_and_answers(tiny_model_dir: Path, tmp_path: Path, four_bit: bool):
    model = JapaneseModel(str(tiny_model_dir))
    trainer = LoRAFinetuningTrainer(
        model,
        LoRAConfig(r=4, use_qlora=True, qlora_4bit=four_bit),
        training(tmp_path / "out", num_epochs=2, runtime={"precision": "auto"}),
        data=DataConfig(max_length=64),
    )
    trainer.train(ROWS)
    assert numbers(tmp_path / "out")[-1] < numbers(tmp_path / "out")[0]
    assert isinstance(model.generate_japanese("3の次の数は何ですか？", max_new_tokens=4), str)


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
def test_packed_rows_do_not_see_each_other(tiny_model_dir: Path, attention: str):
    from ai_finetuning.execution.packing_check import leak_of_packing
    from ai_finetuning.models.loading import load_causal_lm

    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model = load_causal_lm(str(tiny_model_dir), attention=attention)
    assert model.config._attn_implementation == attention
    assert leak_of_packing(model) < 2e-2  # bf16 rounding; a leak moves logits by tenths


def test_the_estimate_bounds_the_measured_peak(tiny_model_dir: Path, tmp_path: Path):
    torch.cuda.reset_peak_memory_stats()
    train_full(tiny_model_dir, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["result"]
    assert 0 < result["peak_memory_gb"] <= result["estimated_memory_gb"]


def test_memory_information_has_the_documented_keys():
    info = get_gpu_memory_info()
    assert info["available"] is True
    assert info["device_count"] == len(info["devices"]) >= 1
    assert info["devices"][0]["total_memory_gb"] > 1


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_way_to_quantize_is_stored_exactly_and_measured_by_events(tmp_path: Path, method):
    pytest.importorskip(method.backend)
    name = str(save_tiny_model(tmp_path / "model", hidden_size=256))
    optimizer = QuantizationOptimizer(name)
    model = optimizer.quantize(tmp_path / "q", bits=method.bits, backend=method.backend, quant_type=method.quant_type)
    assert optimizer.report.modules > 0
    original = load_causal_lm(name)
    obtained = optimizer.benchmark_quantization(original, model, [torch.arange(6, 70)], num_runs=2)
    assert obtained["quantized"]["device"].startswith("cuda")
    assert obtained["quantized"]["peak_bytes"] > obtained["quantized"]["memory_bytes"]
    assert not obtained["environment"]["timed_with_cpu_packing"]
    assert obtained["memory_ratio"] < 1
