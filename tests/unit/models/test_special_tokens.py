"""Tokens that the user gives: checked, in force for labels and generation, saved with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tests.support.commands import ROWS, call
from tests.support.models import build_model, build_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ai_finetuning.config.model import ModelConfig
from ai_finetuning.data.messages import Conversation, Message
from ai_finetuning.data.tokenize import encode
from ai_finetuning.errors import ConfigError
from ai_finetuning.inference.session import open_model
from ai_finetuning.models.special_tokens import grow_embedding, turn_end_ids, with_tokens
from ai_finetuning.models.tokenizers import load_tokenizer, prompt_style

TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<eot>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def test_without_tokens_the_tokenizer_is_the_same_object():
    tokenizer = build_tokenizer()
    assert with_tokens(tokenizer, ModelConfig()) is tokenizer


def test_special_tokens_take_the_place_of_the_tokenizers_own():
    tokenizer = build_tokenizer()
    changed = with_tokens(tokenizer, ModelConfig(special_tokens={"eos_token": "<|user|>", "unk_token": "<pad>"}))
    assert (changed.eos_token, changed.eos_token_id) == ("<|user|>", tokenizer.get_vocab()["<|user|>"])
    assert changed.unk_token == "<pad>"
    assert (changed.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"special_tokens": {"eos_token": "<|usr|>"}}, "model.special_tokens[eos_token] is '<|usr|>'"),
        ({"turn_end_tokens": ["<|usr|>"]}, "model.turn_end_tokens is '<|usr|>'"),
    ],
)
def test_a_token_that_is_not_there_is_refused_with_the_near_ones(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as refusal:
        with_tokens(build_tokenizer(), ModelConfig(**values))
    assert message in refusal.value.en
    assert "did you mean <|user|>" in refusal.value.en
    assert "model.extra_tokens" in refusal.value.ja


def test_new_tokens_are_one_token_each_and_known_ones_stay(logged: Any):
    tokenizer = build_tokenizer()
    changed = with_tokens(
        tokenizer, ModelConfig(extra_tokens=["<道具>", "<s>"], special_tokens={"eos_token": "<道具>"})
    )
    assert len(changed) == len(tokenizer) + 1
    assert changed.encode("答え<道具>", add_special_tokens=False)[-1] == len(tokenizer) == changed.eos_token_id
    assert len(tokenizer.encode("<道具>", add_special_tokens=False)) > 1
    assert "<s> is in the vocabulary already" in logged()


def test_ends_of_turns_carry_loss_and_stop_generation(tmp_path: Path):
    """In every assistant turn; nothing is appended behind the last one. The saved tokenizer knows them."""
    tokenizer = build_tokenizer(TEMPLATE)
    turns = [Message("user", "一"), Message("assistant", "二"), Message("user", "三"), Message("assistant", "四")]
    sample = Conversation(tuple(turns), "x")
    config = ModelConfig(extra_tokens=["<eot>", "<eom>"], turn_end_tokens=["<eot>", "<eom>"])
    changed = with_tokens(tokenizer, config)
    end, other = changed.convert_tokens_to_ids(["<eot>", "<eom>"])
    (example,), _ = encode([sample], changed, max_length=64)
    labels = example.labels.tolist()
    assert labels.count(end) == 2
    assert labels[-1] == example.input_ids.tolist()[-1] == end
    changed.save_pretrained(tmp_path)
    for loaded in (changed, load_tokenizer(str(tmp_path)), AutoTokenizer.from_pretrained(tmp_path)):
        assert turn_end_ids(loaded) == {end, other}
        assert set(prompt_style(loaded).stop_token_ids) == {end, other, tokenizer.eos_token_id}
        assert loaded.decode([end], skip_special_tokens=True) == ""


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied", "gpt_neox", "gpt2"])
def test_new_rows_are_the_mean_of_the_others(kind: str):
    model = build_model(kind)
    before = model.get_input_embeddings().weight.detach().clone()
    grow_embedding(model, 405)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert module.weight.shape[0] == 405
        assert torch.allclose(module.weight[400:], module.weight[:400].mean(0).expand(5, -1), atol=1e-6)
    assert torch.equal(model.get_input_embeddings().weight[:400], before)
    assert model.config.vocab_size == 405


# --- in runs


def write(folder: Path, base: Path, **changes: Any) -> str:
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    template = folder / "template.jinja"
    template.write_text(TEMPLATE, encoding="utf-8")
    values = {
        "name": str(base),
        "chat_template": str(template),
        "extra_tokens": ["<eot>"],
        "turn_end_tokens": ["<eot>"],
        "special_tokens": {"eos_token": "<eot>"},
    }
    run = {
        "model": values,
        "train": str(rows),
        "eval": str(rows),
        "max_length": 64,
        "learning_rate": 1e-3,
        "max_steps": 3,
        "save_steps": 1,
        "output_dir": str(folder / "out"),
        "fp16": False,
        "progress": False,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(run | changes, allow_unicode=True), encoding="utf-8")
    return str(path)


def test_without_spare_rows_the_method_has_to_train_them(tmp_path: Path, tiny_model_dir: Path, logged: Any):
    run = write(tmp_path, tiny_model_dir)
    assert call("train", run) == 78
    text = logged()
    assert "model.extra_tokens needs" in text
    assert "method: full" in text
    assert call("train", run, "modules_to_save=[embed_tokens]") == 78  # the head would have no row for it
    assert not (tmp_path / "out").exists()


def test_full_training_grows_the_model_and_resumes(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    run, old = write(tmp_path, tiny_model_dir, method="full"), len(build_tokenizer())
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@2")
        assert call("train", run) == 75
    assert call("train", run, "--resume", "extra_tokens=[<eot>,<b>]") == 78
    assert "extra_tokens" in logged()
    assert call("train", run, "--resume") == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == model.config.vocab_size == old + 1
    assert model.config.eos_token_id == model.generation_config.eos_token_id == old
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert (tokenizer.eos_token, tokenizer.convert_tokens_to_ids("<eot>")) == ("<eot>", old)


def test_an_adapter_with_grown_embeddings_is_loaded_merged_and_gone_on_from(
    tmp_path: Path, tiny_model_dir: Path, logged: Any
):
    run, rows = write(tmp_path, tiny_model_dir), len(build_tokenizer()) + 1
    assert call("train", run, "modules_to_save=[embed_tokens,lm_head]") == 0
    opened = open_model(str(tmp_path / "out"))
    assert opened.model.get_input_embeddings().weight.shape[0] == rows
    assert rows - 1 in prompt_style(opened.tokenizer, opened.model.generation_config).stop_token_ids
    assert call("merge", str(tmp_path / "out"), "--out", str(tmp_path / "merged"), "--dtype", "float32") == 0
    assert load_file(tmp_path / "merged" / "model.safetensors")["model.embed_tokens.weight"].shape[0] == rows
    again = (f"lora.adapter={tmp_path / 'out'}", f"output_dir={tmp_path / 'again'}")
    assert call("train", run, *again) == 0
    assert call("train", run, *again, "extra_tokens=null", "turn_end_tokens=null", "special_tokens=null") == 78
    assert "was trained with the tokens <eot>" in logged()


def test_spare_rows_are_taken_as_they_are(tmp_path: Path):
    """Rows that a model has beyond its tokenizer: LoRA trains, the base stays as it was."""
    model = save_tiny_model(tmp_path / "spare")
    bigger = build_model(vocab_size=448)
    bigger.save_pretrained(model)
    assert call("train", write(tmp_path, model)) == 0
    opened = open_model(str(tmp_path / "out"), dtype="float32")
    assert opened.tokenizer.convert_tokens_to_ids("<eot>") == len(build_tokenizer())
    assert torch.equal(opened.model.get_input_embeddings().weight, bigger.get_input_embeddings().weight)


def test_ends_that_the_template_does_not_print_are_said(tmp_path: Path, tiny_model_dir: Path, logged: Any):
    run = write(tmp_path, tiny_model_dir, model={"name": str(tiny_model_dir), "turn_end_tokens": ["<|user|>"]})
    assert call("train", run, "max_steps=1") == 0
    assert "puts none of model.turn_end_tokens (<|user|>) behind an answer" in logged()


def test_a_new_model_has_rows_for_new_tokens(tmp_path: Path, tiny_model_dir: Path):
    architecture = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
    run = write(tmp_path, tiny_model_dir, method="pretrain")
    values = yaml.safe_load(Path(run).read_text(encoding="utf-8"))
    values["model"]["architecture"] = architecture
    Path(run).write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert call("train", run) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.get_input_embeddings().weight.shape[0] == len(build_tokenizer()) + 1
