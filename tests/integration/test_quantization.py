"""QuantizationOptimizer and merging: what lands on disk is what was computed, and loads with plain transformers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.commands import call
from tests.support.disks import mounted
from tests.support.models import build_experts, build_tokenizer, save_tiny_model
from tests.support.runs import train_lora

from ai_finetuning import JapaneseModel, LoRAConfig, LoRAFinetuningTrainer, QuantizationOptimizer, TrainingConfig
from ai_finetuning.convert import quantize as quantization
from ai_finetuning.convert.merge import merge_adapter
from ai_finetuning.errors import ConfigError, ModelError, StorageError
from ai_finetuning.inference.session import open_model
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.quantized import (
    allow_cpu_packing,
    forbid_cpu_packing,
    linear_modules,
    packs_on_cpu,
    quantized_bits,
    weight_bytes,
)
from ai_finetuning.system.gpu import cpu_flags


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([build_tokenizer().encode("日本の首都は東京です。")])).logits.float()


METHODS = [
    ("bitsandbytes", 8, None, {}),
    ("bitsandbytes", 8, "int8", {"llm_int8_threshold": 0.0}),
    ("bitsandbytes", 4, None, {}),
    ("bitsandbytes", 4, "nf4", {"bnb_4bit_use_double_quant": False}),
    ("bitsandbytes", 4, "fp4", {}),
    ("bitsandbytes", 4, "fp4", {"bnb_4bit_use_double_quant": False}),
    ("torchao", 8, None, {}),
    ("torchao", 8, "int8-dynamic", {}),
]


@pytest.mark.parametrize(("backend", "bits", "quant_type", "settings"), METHODS)
def test_quantized_copies_reload_with_plain_transformers_bit_for_bit(
    tiny_model_dir: Path, tmp_path: Path, backend: str, bits: int, quant_type: str | None, settings: dict, logged
):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    pytest.importorskip(backend)
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    model = optimizer.quantize(tmp_path / "q", bits=bits, backend=backend, quant_type=quant_type, settings=settings)
    assert "14 linear layers" in logged()
    assert optimizer.report.modules == len(linear_modules(model, bits)) == 14
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "q")
    assert quantized_bits(again) == bits
    forbid_cpu_packing(again)  # plain bitsandbytes re-packs 4-bit weights in its own forward on some processors
    assert torch.equal(logits(again), logits(model))
    assert torch.equal(logits(load_causal_lm(str(tmp_path / "q"))), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "q").chat_template == build_tokenizer().chat_template
    original = load_causal_lm(str(tiny_model_dir))
    close = torch.nn.functional.cosine_similarity(logits(model).flatten(), logits(original).flatten(), dim=0)
    assert close > 0.95
    held = weight_bytes(model)
    assert sum(held.values()) < sum(weight_bytes(original).values())
    size = (tmp_path / "q" / "model.safetensors").stat().st_size
    assert optimizer.report.size_bytes == size
    assert sum(held.values()) == pytest.approx(
        size, rel=0.1
    )  # torchao's own get_memory_footprint() claims the 16-bit size
    assert not [path.name for path in (tmp_path / "q").iterdir() if path.suffix in (".bin", ".pt")]


@pytest.mark.parametrize(
    ("method", "options", "stored"),
    [
        ("quantize_to_8bit", {"llm_int8_threshold": 3.5}, {"load_in_8bit": True, "llm_int8_threshold": 3.5}),
        ("quantize_to_8bit", {"llm_int8_threshold": 6}, {"load_in_8bit": True, "llm_int8_threshold": 6.0}),
        (
            "quantize_to_8bit",
            {"llm_int8_enable_fp32_cpu_offload": True},
            {"load_in_8bit": True, "llm_int8_enable_fp32_cpu_offload": False},
        ),
        (
            "quantize_to_4bit",
            {"compute_dtype": torch.float32},
            {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": "float32"},
        ),
        (
            "quantize_to_4bit",
            {"quant_type": "fp4", "use_double_quant": False},
            {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
        ),
    ],
)
def test_no_documented_parameter_is_lost(
    tiny_model_dir: Path, tmp_path: Path, method: str, options: dict, stored: dict
):
    """Each is in the stored configuration and in force; the one that would leave all weights in 16 bit on a CPU is
    taken out.
    """
    model = getattr(QuantizationOptimizer(str(tiny_model_dir)), method)(str(tmp_path / "q"), **options)
    config = json.loads((tmp_path / "q" / "config.json").read_text(encoding="utf-8"))
    assert {key: config["quantization_config"][key] for key in stored} == stored
    assert config["dtype"] != "float16"  # the documented default, several times slower on a CPU
    assert quantized_bits(model) == quantized_bits(load_causal_lm(str(tmp_path / "q"))) == int(method[-4])
    if "compute_dtype" in options:
        assert config["dtype"] == "float32"
        assert linear_modules(model, 4)[0].compute_dtype is torch.float32
    if options.get("llm_int8_threshold"):
        assert linear_modules(model, 8)[0].state.threshold == options["llm_int8_threshold"]


@pytest.mark.parametrize("bits", [4, 8])
def test_the_returned_model_is_as_if_it_had_just_been_loaded(tiny_model_dir: Path, tmp_path: Path, bits: int):
    from transformers import PreTrainedModel

    model = QuantizationOptimizer(str(tiny_model_dir)).quantize(tmp_path / "q", bits=bits)
    assert isinstance(model, PreTrainedModel)
    assert model.name_or_path == str(tmp_path / "q")
    for module in linear_modules(model, bits):
        if bits == 8:  # the first forward moves the scales from the weight to the module
            assert module.weight.SCB is not None
            assert module.state.SCB is None
        else:
            assert module.support_avx512bf16_for_cpu is False
            assert not getattr(module.weight.quant_state, "packing_format_for_cpu", False)
    logits(model)
    model.save_pretrained(tmp_path / "again")  # after a forward: without re-packing it writes the same bytes
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("q", "again"))
    assert first == second


def test_chat_and_generate_allow_re_packing(tiny_model_dir: Path, tmp_path: Path):
    QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(tmp_path / "q"))
    opened = open_model(str(tmp_path / "q"))
    flags = {module.support_avx512bf16_for_cpu for module in linear_modules(opened.model, 4)}
    assert flags == {packs_on_cpu(opened.model)}
    model = JapaneseModel(str(tmp_path / "q"))
    assert isinstance(model.generate_japanese("首都は？", max_new_tokens=3), str)
    assert {module.support_avx512bf16_for_cpu for module in linear_modules(model.model, 4)} == {False}


@pytest.mark.skipif("avx512_bf16" not in cpu_flags(), reason="bitsandbytes re-packs on AVX512-BF16 alone")
def test_a_copy_saved_after_a_re_packing_forward_is_found_out(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The defect of bitsandbytes 0.50.2 itself: without double quantization the scales stay transposed in what is
    saved.
    """
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def late(model, folder, **options):
        allow_cpu_packing(model)
        logits(model)
        forbid_cpu_packing(model)
        save(model, folder, **options)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", late)
    with pytest.raises(ModelError, match="computes different results after reloading"):
        QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(tmp_path / "q"), use_double_quant=False)
    assert not list(tmp_path.iterdir())


def test_a_copy_that_computes_otherwise_is_taken_back(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import PreTrainedModel

    save = PreTrainedModel.save_pretrained

    def wrong(model, folder, **options):
        save(model, folder, **options)
        tensors = load_file(Path(folder) / "model.safetensors")
        tensors["model.norm.weight"] *= 1.01
        save_file(tensors, Path(folder) / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", wrong)
    with pytest.raises(ModelError, match="computes different results after reloading"):
        QuantizationOptimizer(str(tiny_model_dir)).quantize_to_8bit(str(tmp_path / "q"))
    assert not list(tmp_path.iterdir())


def test_weights_that_do_not_compute_are_not_kept(tiny_model_dir: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="values that are not finite"):
        QuantizationOptimizer(str(broken)).quantize_to_8bit(str(tmp_path / "q"))
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


def test_nothing_quantized_is_an_error(tmp_path: Path):
    save_tiny_model(tmp_path / "no-layers", layers=0)  # a head alone, and heads stay in 16 bit
    with pytest.raises(ModelError, match="0 modules were quantized"):
        QuantizationOptimizer(str(tmp_path / "no-layers")).quantize_to_4bit(str(tmp_path / "q"))
    assert not (tmp_path / "q").exists()


def test_refusals_come_before_anything_is_written(tiny_model_dir: Path, tmp_path: Path):
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    out = tmp_path / "q"
    for ask, word in (
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_has_fp16_weight=True), "llm_int8_has_fp16_weight"),
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_threshold=-1.0), "llm_int8_threshold"),
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_threshold=float("nan")), "llm_int8_threshold"),
        (lambda: optimizer.quantize_to_8bit(str(out), llm_int8_threshold="6"), "llm_int8_threshold"),  # type: ignore[arg-type]
        (
            lambda: optimizer.quantize_to_4bit(str(out), quant_type="int4"),
            "backend=bitsandbytes bits=4 quant_type=int4 is not a quantization method",
        ),
        (lambda: optimizer.quantize(out, bits=3), "bits=3"),
        (lambda: optimizer.quantize(out, bits=8, backend="hqq"), "backend=hqq"),
        (lambda: optimizer.quantize(out, bits=8, settings={"bnb_4bit_use_double_quant": True}), "does not apply"),
        (lambda: optimizer.quantize(out, bits=8, compute_dtype="int4"), "dtype is 'int4'"),
    ):
        with pytest.raises((ConfigError, ModelError), match=word):
            ask()
    assert not list(tmp_path.iterdir())
    out.mkdir()
    (out / "mine.txt").write_text("大事", encoding="utf-8")
    with pytest.raises(ConfigError, match="not empty"):
        optimizer.quantize_to_4bit(str(out))
    assert (out / "mine.txt").read_text(encoding="utf-8") == "大事"


def test_torchao_int4_is_refused_where_it_does_not_run(tiny_model_dir: Path, tmp_path: Path):
    pytest.importorskip("torchao")
    optimizer = QuantizationOptimizer(str(tiny_model_dir), torch.device("cpu"))
    with pytest.raises(ConfigError, match="runs on a CUDA GPU in bfloat16 only"):
        optimizer.quantize(tmp_path / "q", bits=4, backend="torchao")
    assert not list(tmp_path.iterdir())


def test_a_torchao_folder_answers_but_is_not_trained_on(tiny_model_dir: Path, tmp_path: Path):
    pytest.importorskip("torchao")
    QuantizationOptimizer(str(tiny_model_dir)).quantize(tmp_path / "q", bits=8, backend="torchao")
    model = JapaneseModel(str(tmp_path / "q"))
    assert isinstance(model.generate_japanese("首都は？", max_new_tokens=3), str)
    assert not model.weights_changed()
    for _ in ("loaded", "not loaded"):
        trainer = LoRAFinetuningTrainer(model, LoRAConfig(r=2), TrainingConfig(output_dir=str(tmp_path / "out")))
        with pytest.raises(ConfigError, match="quantized by torchao"):
            trainer.train(["これは文です。"])
        model.unload()
    assert not (tmp_path / "out").exists()


def test_a_missing_backend_is_said(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(tiny_model_dir, tmp_path / "stored")
    file = tmp_path / "stored" / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | {"quantization_config": {"quant_method": "torchao"}}
    file.write_text(json.dumps(config), encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"ai-finetuning-toolkit\[torchao\]"):
        load_causal_lm(str(tmp_path / "stored"))
    with pytest.raises(ModelError, match="pip install"):
        QuantizationOptimizer(str(tiny_model_dir)).quantize(tmp_path / "q", bits=8, backend="torchao")


def test_a_quantized_model_is_not_quantized_again(tiny_model_dir: Path, tmp_path: Path):
    QuantizationOptimizer(str(tiny_model_dir)).quantize_to_4bit(str(tmp_path / "q"))
    with pytest.raises(ConfigError, match="quantized already"):
        QuantizationOptimizer(str(tmp_path / "q")).quantize_to_8bit(str(tmp_path / "b"))
    assert not (tmp_path / "b").exists()


def test_an_adapter_is_not_a_model(adapter: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"is a LoRA adapter, not a whole model.*aift merge"):
        QuantizationOptimizer(str(adapter)).quantize_to_4bit(str(tmp_path / "q"))
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_refused_and_a_full_disk_leaves_nothing(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
        with pytest.raises(StorageError, match="GB are needed"):
            optimizer.quantize_to_4bit(str(tmp_path / "q"))
    assert not list(tmp_path.iterdir())
    with mounted(tmp_path / "disk", "64k") as disk:
        monkeypatch.setattr(
            quantization, "free_disk_bytes", lambda path: 10**9
        )  # it fills up while the copy is written
        with pytest.raises(StorageError, match="No space left"):
            optimizer.quantize_to_4bit(str(disk / "q"))
        assert not list(disk.iterdir())


def test_a_place_that_cannot_be_written_is_refused_before_anything_loads(tiny_model_dir: Path, tmp_path: Path, logged):
    optimizer = QuantizationOptimizer(str(tiny_model_dir))
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(StorageError, match="could not be written"):
        optimizer.quantize_to_4bit(str(tmp_path / "file" / "q"))
    with mounted(tmp_path / "disk", "8m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(StorageError, match=r"could not be written.*Read-only"):
            optimizer.quantize_to_4bit(str(disk / "q"))
    assert "Attention" not in logged()


@pytest.fixture(scope="module")
def adapter(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "out"
    train_lora(tiny_model_dir, folder, num_epochs=4)
    return folder


def test_a_merge_agrees_with_base_plus_adapter(adapter: Path, tiny_model_dir: Path, tmp_path: Path, logged):
    from transformers import AutoModelForCausalLM

    report = merge_adapter(str(adapter), str(tmp_path / "merged"), dtype="float32")
    assert report.kl < 1e-6
    assert report.top1 == 1.0
    assert "verified by reloading" in logged()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    from ai_finetuning.models.adapters import load_adapter

    assert torch.allclose(logits(merged), logits(load_adapter(base, adapter).eval()), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(AutoModelForCausalLM.from_pretrained(tiny_model_dir)), atol=1e-2)


def test_a_merge_that_does_not_agree_is_taken_back(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.convert import merge as merging

    def wrong(model):
        merged = model.merge_and_unload()
        with torch.no_grad():
            merged.lm_head.weight.mul_(-1.0)
        return merged

    monkeypatch.setattr(merging, "merge_into", wrong)
    with pytest.raises(ModelError, match="does not match"):
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


def test_a_mixture_of_experts_is_told_that_its_experts_stay_as_they_are(tmp_path: Path, logged):
    pytest.importorskip("bitsandbytes")
    tokenizer = build_tokenizer()
    build_experts(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    QuantizationOptimizer(str(tmp_path / "model")).quantize_to_4bit(tmp_path / "q")
    assert "do not become 4 bit" in logged()
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "あ"}, {"role": "assistant", "content": "い"}]}\n' * 4,
        encoding="utf-8",
    )
    settings = [f"model={tmp_path / 'model'}", f"data.train={tmp_path / 'rows.jsonl'}", "method=qlora"]
    assert call("plan", *settings, f"training.output_dir={tmp_path / 'out'}") == 0
    assert logged().count("do not become 4 bit") == 2
