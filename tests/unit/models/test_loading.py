"""What is loaded, how, and what is refused before any byte of it is trusted."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.support.models import build_tokenizer, save_tiny_model

from ai_finetuning import JapaneseModel, LoRAFinetuningTrainer
from ai_finetuning.errors import InputNotFoundError, ModelError, ToolkitError
from ai_finetuning.models.adapters import add_lora, load_adapter
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.system.gpu import cpu_has_bf16


@pytest.mark.parametrize("kind", ["llama", "qwen2", "stablelm", "gpt_neox"])
def test_architectures_load_say_their_attention_and_compute(tmp_path: Path, kind: str, logged):
    save_tiny_model(tmp_path / kind, kind)
    model = load_causal_lm(str(tmp_path / kind))
    assert not model.training
    assert logged().count("Attention: sdpa (flash_attention_2: needs a GPU, not cpu)") == 1
    assert next(model.parameters()).dtype is (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    ids = torch.tensor([build_tokenizer().encode("日本")])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_an_attention_that_the_model_refuses_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    """An architecture without SDPA: eager is taken, and the reason is said."""
    import transformers

    save_tiny_model(tmp_path / "m")
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_supports_sdpa", False)
    model = load_causal_lm(str(tmp_path / "m"))
    assert model.config._attn_implementation == "eager"
    assert "Attention: eager" in logged()


def test_fp16_on_a_cpu_is_answered_with_what_the_machine_does_well(tiny_model_dir: Path, logged):
    model = load_causal_lm(str(tiny_model_dir), dtype=torch.float16)
    assert next(model.parameters()).dtype is not torch.float16
    assert "float16 is slow on a CPU" in logged()


@pytest.mark.parametrize("bits", [4, 8])
def test_quantized_weights_are_really_quantized(tiny_model_dir: Path, bits: int):
    from ai_finetuning.models.quantized import quantized_bits

    model = load_causal_lm(str(tiny_model_dir), load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    assert quantized_bits(model) == bits
    with pytest.raises(ModelError, match="both"):
        load_causal_lm(str(tiny_model_dir), load_in_4bit=True, load_in_8bit=True)


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_never_opened(tiny_model_dir: Path, tmp_path: Path, name: str):
    folder = tmp_path / "bad"
    shutil.copytree(tiny_model_dir, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(ModelError, match="[Ss]afetensors"):
        load_causal_lm(str(folder))
    assert not (tmp_path / "boom").exists()


def test_a_pickled_adapter_is_never_opened(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}), encoding="utf-8")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "boom")))
    with pytest.raises(ModelError, match="adapter_model.safetensors"):
        LoRAFinetuningTrainer.load_lora_model(str(tiny_model_dir), str(folder))
    assert not (tmp_path / "boom").exists()


def test_code_in_a_repository_is_refused_and_runs_only_where_allowed(tiny_model_dir: Path, tmp_path: Path, logged):
    folder = tmp_path / "remote"
    shutil.copytree(tiny_model_dir, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["auto_map"] = {"AutoModelForCausalLM": "code.Model"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'boom')!r}, 'w')\n", encoding="utf-8")
    with pytest.raises(ModelError, match="trust_remote_code"):
        JapaneseModel(str(folder)).load_model()
    assert not (tmp_path / "boom").exists()


def test_damaged_weights_are_named(tiny_model_dir: Path, tmp_path: Path):
    folder = tmp_path / "cut"
    shutil.copytree(tiny_model_dir, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="damaged"):
        load_causal_lm(str(folder))


def changed(source: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
    """A copy of a model's folder with other weights, and other values in its config.json."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(values | config), encoding="utf-8")
    return folder


def as_of_another_tool(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if "proj" in name]:
        tensors[name.replace("weight", "qweight")] = tensors.pop(name).to(torch.int8)


@pytest.mark.parametrize(
    ("change", "config", "expected"),
    [
        (lambda tensors: tensors.pop("model.layers.0.self_attn.q_proj.weight"), {}, "1 weights are not in its files"),
        (lambda tensors: tensors.pop("lm_head.weight"), {}, "tie_word_embeddings: true"),
        (lambda tensors: None, {"num_hidden_layers": 3}, "model.layers.2"),
        (as_of_another_tool, {}, "hold model.layers.0.mlp.down_proj.qweight"),
        (lambda tensors: None, {"vocab_size": 300}, "400x64 in the files, 300x64 by config.json"),
    ],
    ids=["a layer", "the head", "a deeper config", "another quantization", "other sizes"],
)
def test_a_model_that_its_files_do_not_fill_is_refused(
    change: Callable[[dict[str, torch.Tensor]], object],
    config: dict[str, object],
    expected: str,
    tiny_model_dir: Path,
    tmp_path: Path,
):
    """Anything else would train, and answer, with random layers."""
    with pytest.raises(ModelError) as refused:
        load_causal_lm(str(changed(tiny_model_dir, tmp_path / "m", change, **config)))
    assert expected in refused.value.en


@pytest.mark.parametrize(
    ("change", "config", "expected"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), {}, "1 weights are not in its files"),
        (lambda tensors: None, {"num_hidden_layers": 1}, "9 weights of its files have no place"),
        (lambda tensors: tensors.update({"lora_A": torch.zeros(2)}), {}, "not used (for example lora_A)"),
    ],
    ids=["a norm", "a shallower config", "an adapter inside"],
)
def test_what_does_not_belong_together_is_said(
    change: Callable[[dict[str, torch.Tensor]], object],
    config: dict[str, object],
    expected: str,
    tiny_model_dir: Path,
    tmp_path: Path,
    logged,
):
    load_causal_lm(str(changed(tiny_model_dir, tmp_path / "m", change, **config)))
    assert expected in logged()


def test_a_model_that_writes_no_texts_is_refused_in_words(tmp_path: Path):
    """The library's refusal lists all families, and some have `flash` in their names, as a refused attention has."""
    import transformers

    config = transformers.T5Config(vocab_size=400, d_model=32, d_ff=64, num_layers=1, num_heads=2, d_kv=16)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="causal language model"):
        load_causal_lm(str(tmp_path / "m"))


def test_an_encoder_that_is_loaded_as_a_language_model_is_refused(tmp_path: Path):
    import transformers

    sizes = {"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    config = transformers.BertConfig(**sizes, num_attention_heads=2)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="is an encoder .bert.*is_decoder: true"):
        load_causal_lm(str(tmp_path / "m"))
    config.is_decoder = True
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path / "decoder")
    load_causal_lm(str(tmp_path / "decoder"))


def test_an_index_without_weights_is_damaged(tiny_model_dir: Path, tmp_path: Path):
    folder = changed(tiny_model_dir, tmp_path / "m", lambda tensors: None)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"index\.json cannot be read"):
        load_causal_lm(str(folder))


def test_an_adapter_of_another_base_is_refused_by_name(tiny_model_dir: Path, tmp_path: Path):
    other = save_tiny_model(tmp_path / "wide", hidden_size=128)
    add_lora(load_causal_lm(str(other), dtype="float32"), r=4, alpha=8).save_pretrained(tmp_path / "adapter")
    base = load_causal_lm(str(tiny_model_dir), dtype="float32")
    before = {name: weight.clone() for name, weight in base.named_parameters()}
    with pytest.raises(ModelError, match=f"trained on {other}"):
        load_adapter(base, tmp_path / "adapter")
    assert all(torch.equal(before[name], weight) for name, weight in base.named_parameters())
    neox = load_causal_lm(str(save_tiny_model(tmp_path / "neox", "gpt_neox")), dtype="float32")
    with pytest.raises(ModelError, match="trained on"):
        load_adapter(neox, tmp_path / "adapter")
    with pytest.raises(InputNotFoundError):
        LoRAFinetuningTrainer.load_lora_model(str(tiny_model_dir), str(tmp_path / "nothing"))


def test_unknown_lora_targets_list_the_real_ones(tiny_model_dir: Path):
    with pytest.raises(ToolkitError, match="q_proj"):
        add_lora(load_causal_lm(str(tiny_model_dir)), r=4, alpha=8, target_modules=["query_key_value"])


def test_fallback_says_what_was_loaded_and_why_not_the_rest(tiny_model_dir: Path, logged):
    model = JapaneseModel("nobody/nothing-7b")
    assert model.load_with_fallback(["nobody/else", str(tiny_model_dir)]) is True
    assert model.model_name == str(tiny_model_dir)
    text = logged()
    assert "nobody/nothing-7b was not loaded" in text
    assert "nobody/else was not loaded" in text
    assert f"loaded {tiny_model_dir} instead" in text
    assert model.model is not None
    failed = JapaneseModel("nobody/nothing-7b")
    assert failed.load_with_fallback(["nobody/else"]) is False
    assert failed.model is None


def test_fallback_keeps_the_requested_model_where_it_loads(tiny_model_dir: Path):
    model = JapaneseModel(str(tiny_model_dir))
    assert model.load_with_fallback() is True
    assert model.model_name == str(tiny_model_dir)


def test_default_fallbacks_fit_the_machine():
    from ai_finetuning.models import catalog

    small = catalog.fallback_order("elyza/ELYZA-japanese-Llama-2-7b-instruct", 6 * 2**30)
    assert small
    assert all(catalog.rows()[name].memory_gib["infer"] <= 6 for name in small)
    assert not any(catalog.rows()[name].gated for name in small)


def test_weight_changes_are_noticed(tiny_model_dir: Path):
    model = JapaneseModel(str(tiny_model_dir))
    module = model.load_model()
    assert not model.weights_changed()
    with torch.no_grad():
        module.lm_head.weight.mul_(1.5)
    assert model.weights_changed()
