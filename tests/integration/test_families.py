"""Kinds of models as a user meets them: each trains, generates and merges, or is refused before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.commands import call
from tests.support.models import build_tokenizer, save_tiny_model
from tests.sweep.families import build

QUESTIONS = ["首都は？", "送料は？", "天気は？", "返品は？"]


def folder_of(path: Path, family: str, **changes: Any) -> Path:
    """A tiny model of a family on disk, with its tokenizer."""
    tokenizer = build_tokenizer()
    build(family, vocab_size=len(tokenizer), **changes).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def train(base: Path, out: Path, *settings: str) -> int:
    rows = out.parent / "rows.jsonl"
    text = "".join(json.dumps({"instruction": q, "output": "東京です。"}, ensure_ascii=False) + "\n" for q in QUESTIONS)
    rows.write_text(text, encoding="utf-8")
    return call(
        "train",
        f"model={base}",
        "method=lora",
        f"data.train={rows}",
        f"training.output_dir={out}",
        "learning_rate=3e-2",
        "training.num_epochs=1",
        "training.warmup_steps=0",
        *settings,
    )


def damaged(base: Path) -> Path:
    """The model with weights that cannot be read: what is refused now was refused before them."""
    (base / "model.safetensors").write_bytes(b"no weights")
    return base


@pytest.mark.parametrize(
    ("family", "line"),
    [
        ("mixtral", "LoRA goes on k_proj, o_proj, q_proj, v_proj; not on experts.down_proj, experts.gate_up_proj"),
        ("phimoe", "mlp.router (the router of the experts)"),
        ("mamba", "not on mixer.out_proj (fast kernels read its weight directly)"),
    ],
)
def test_lora_with_its_defaults_trains_and_merges(
    family: str, line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    base = folder_of(tmp_path / "base", family)
    assert train(base, tmp_path / "out") == 0
    assert line in caplog.text
    assert call("merge", str(tmp_path / "out"), "--out", str(tmp_path / "m"), "--dtype", "float32") == 0


def test_experts_train_where_they_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    base = folder_of(tmp_path / "base", "mixtral")
    settings = ["lora.target_parameters=[experts.gate_up_proj,experts.down_proj]", "training.batch_size=2"]
    assert train(base, tmp_path / "out", *settings) == 0
    assert "experts.down_proj (dropout 0)" in caplog.text
    saved = load_file(tmp_path / "out" / "adapter_model.safetensors")
    experts = {name: weight for name, weight in saved.items() if ".experts." in name and "lora_B" in name}
    assert experts
    assert all(weight.abs().sum() > 0 for weight in experts.values())
    assert call("merge", str(tmp_path / "out"), "--out", str(tmp_path / "m"), "--dtype", "float32") == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "m"))
    changed = [name for name in before if "experts" in name and not torch.equal(before[name], after[name])]
    assert changed


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("lora.modules_to_save=[lm_heads]", "lora.modules_to_save names lm_heads"),
        ("lora.target_modules=[q_proj,model.layers.99.self_attn.v_proj]", "near names: v_proj"),
        ("lora.target_parameters=[experts.gate_up_proj]", "lora.target_parameters names experts.gate_up_proj"),
    ],
)
def test_a_name_that_nothing_has_is_refused_before_weights(
    setting: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = damaged(save_tiny_model(tmp_path / "base"))
    assert train(base, tmp_path / "out", setting) == 78
    assert expected in capsys.readouterr().err


def test_experts_do_not_go_over_parts_of_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = damaged(folder_of(tmp_path / "base", "mixtral"))
    settings = ["lora.target_parameters=[experts.down_proj]", "parallel.strategy=fsdp", "parallel.processes=2"]
    assert train(base, tmp_path / "out", *settings) == 78
    assert "use strategy: ddp" in capsys.readouterr().err


def test_an_encoder_is_no_text_generation_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = folder_of(tmp_path / "base", "bert", is_decoder=False)
    assert train(base, tmp_path / "out", "method=full") == 78
    assert "is_decoder: true" in capsys.readouterr().err


def test_a_model_of_few_positions_answers_to_its_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = folder_of(tmp_path / "base", "gpt2", n_positions=64)
    assert call("generate", str(base), "送料は？", "--greedy") == 0


def test_an_adapter_of_a_shallower_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = save_tiny_model(tmp_path / "one", layers=1)
    other = save_tiny_model(tmp_path / "two", layers=2)
    assert train(base, tmp_path / "out") == 0
    assert call("generate", str(tmp_path / "out"), "送料は？", "--base", str(other)) == 78
    assert "does not fit this model" in capsys.readouterr().err


def test_a_tokenizer_with_one_token_more_trains_and_merges(tmp_path: Path):
    """Gemma 3 1B: 262,145 tokens, 262,144 rows."""
    base = save_tiny_model(tmp_path / "base")
    import copy

    tokenizer = copy.deepcopy(build_tokenizer())
    tokenizer.add_tokens(["<image_soft_token>"])
    tokenizer.save_pretrained(base)
    assert train(base, tmp_path / "out") == 0
    assert call("merge", str(tmp_path / "out"), "--out", str(tmp_path / "m")) == 0
    assert call("generate", str(tmp_path / "m"), "送料は？", "--greedy", "--max-new-tokens", "4") == 0


def test_without_trained_biases_the_base_answers(tmp_path: Path):
    from ai_finetuning.inference.session import Chat, open_model

    base = folder_of(tmp_path / "base", "gpt_neox")
    assert train(base, tmp_path / "out", "lora.bias=all") == 0
    options = {"max_new_tokens": 12, "do_sample": False}
    plain, tuned = Chat(open_model(str(tmp_path / "out"))).compare("首都は？", **options)
    (alone,) = ["".join(Chat(open_model(str(base))).stream("首都は？", **options))]
    assert plain == alone
    assert tuned != alone


@pytest.mark.parametrize("family", ["bloom", "mamba", "roberta"])
def test_rows_are_not_packed_where_documents_would_mix(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = folder_of(tmp_path / "base", family)
    assert train(base, tmp_path / "out", "data.packing=true") == 78
    assert "data.packing=false" in capsys.readouterr().err
    assert train(base, tmp_path / "out") == 0
