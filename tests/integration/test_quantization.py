"""QuantizationOptimizer and merging: what lands on disk is what was computed, and loads with plain transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.support.models import build_tokenizer
from tests.support.runs import train_lora

from ai_finetuning import JapaneseModel, QuantizationOptimizer
from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.quantized import quantized_bits, weight_bytes
from ai_finetuning.training.merging import merge_adapter


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([build_tokenizer().encode("日本の首都は東京です。")])).logits.float()


@pytest.mark.parametrize(
    ("method", "options"),
    [("quantize_to_8bit", {}), ("quantize_to_8bit", {"llm_int8_threshold": 0.0}), ("quantize_to_8bit", {"llm_int8_enable_fp32_cpu_offload": True}), ("quantize_to_4bit", {}), ("quantize_to_4bit", {"quant_type": "fp4", "use_double_quant": False})],
)  # fmt: skip
def test_quantized_copies_reload_with_plain_transformers_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path, method: str, options: dict
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bits = 8 if "8" in method else 4
    model = getattr(QuantizationOptimizer(str(tiny_model_dir)), method)(str(tmp_path / "q"), **options)
    assert quantized_bits(model) == bits
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    assert quantized_bits(again) == bits
    # Plain bitsandbytes re-packs 4-bit weights in its own forward on some processors; our loader does not.
    assert torch.allclose(logits(again), logits(model), atol=0.02)
    assert torch.equal(logits(load_causal_lm(str(tmp_path / "q"))), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "q").chat_template == build_tokenizer().chat_template
    original = load_causal_lm(str(tiny_model_dir), dtype="float32")
    close = torch.nn.functional.cosine_similarity(logits(model).flatten(), logits(original).flatten(), dim=0)
    assert close > 0.95
    assert sum(weight_bytes(model).values()) < sum(weight_bytes(original).values())


def test_a_quantized_copy_is_a_model_like_any_other(tiny_model_dir: Path, tmp_path: Path):
    QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(tmp_path / "q"))
    model = JapaneseModel(str(tmp_path / "q"))
    assert isinstance(model.generate_japanese("首都は？", max_new_tokens=3), str)


def test_refusals_come_before_anything_is_written(tiny_model_dir: Path, tmp_path: Path):
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    out = tmp_path / "q"
    for call, word in (
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_has_fp16_weight=True), "llm_int8_has_fp16_weight"),
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_threshold=-1.0), "llm_int8_threshold"),
        (lambda: optimizer.quantize_to_4bit(str(out), quant_type="int4"), "quant_type"),
    ):
        with pytest.raises(ConfigError, match=word):
            call()
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("大事", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        optimizer.quantize_to_4bit(str(out))
    assert (out / "mine.txt").read_text(encoding="utf-8") == "大事"


def test_a_quantized_model_is_not_quantized_again(tiny_model_dir: Path, tmp_path: Path):
    QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(tmp_path / "q"))
    with pytest.raises(ConfigError, match="quantized already"):
        QuantizationOptimizer(str(tmp_path / "q")).quantize_to_8bit(str(tmp_path / "b"))


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "out"
    train_lora(tiny_model_dir, folder, num_epochs=4)
    return folder


def test_a_merge_agrees_with_base_plus_adapter(adapter: Path, tiny_model_dir: Path, tmp_path: Path, said):
    from transformers import AutoModelForCausalLM

    report = merge_adapter(str(adapter), str(tmp_path / "merged"), dtype="float32")
    assert report.kl < 1e-6
    assert report.top1 == 1.0
    assert "read back and compared" in said()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    from ai_finetuning.models.adapters import load_adapter

    assert torch.allclose(logits(merged), logits(load_adapter(base, adapter).eval()), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(AutoModelForCausalLM.from_pretrained(tiny_model_dir)), atol=1e-2)


def test_a_merge_that_does_not_agree_is_taken_back(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.training import merging

    def wrong(model):
        merged = model.merge_and_unload()
        with torch.no_grad():
            merged.lm_head.weight.mul_(-1.0)
        return merged

    monkeypatch.setattr(merging, "merge_into", wrong)
    with pytest.raises(ModelError, match="does not agree"):
        merge_adapter(str(adapter), str(tmp_path / "merged"))
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_merged(adapter: Path, tiny_model_dir: Path, tmp_path: Path):
    import shutil

    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(adapter, broken)
    tensors = load_file(broken / "adapter_model.safetensors")
    first = next(iter(tensors))
    tensors[first] = torch.full_like(tensors[first], float("nan"))
    save_file(tensors, broken / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError):
        merge_adapter(str(broken), str(tmp_path / "merged"))
    assert not (tmp_path / "merged").exists()


def test_a_qlora_adapter_merges_into_the_16_bit_base(tiny_model_dir: Path, tmp_path: Path):
    train_lora(tiny_model_dir, tmp_path / "q", lora={"use_qlora": True}, num_epochs=1)
    report = merge_adapter(str(tmp_path / "q"), str(tmp_path / "merged"))
    assert report.top1 >= 0.9
    assert quantized_bits(load_causal_lm(str(tmp_path / "merged"))) is None
