"""From texts to a tokenizer to a model from scratch, by the command alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from recipes.kotoha.corpus import corpus
from tests.support.commands import call
from tests.support.runs import losses, weights_digest

from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.models.probes import PROBES


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in [*corpus(300), *PROBES])
    return path


@pytest.fixture(scope="module")
def tokenizer(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "made"
    assert call("tokenizer", "train", str(texts), "--out", str(folder), "--vocab", "1000") == 0
    return folder


def test_the_tokenizer_reads_alike_in_sentencepiece_and_transformers(tokenizer: Path):
    import sentencepiece
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer / "tokenizer.model"))
    assert len(loaded) == reference.get_piece_size() == 1000
    for text in [*PROBES, *corpus(50, seed=9), "改行\nあり", "二つ  空白", "<|user|>質問<|assistant|>答え</s>", "🍣𠮷"]:
        ids = loaded.encode(text, add_special_tokens=False)
        if "</s>" not in text:  # sentencepiece never reads control pieces from text
            assert ids == reference.encode(text, out_type=int)
        assert loaded.decode(ids) == text  # nothing is normalised away
    for token in ("\n", "<|system|>", "<|user|>", "<|assistant|>"):
        assert len(loaded.encode(token, add_special_tokens=False)) == 1
    assert loaded.pad_token_id != loaded.eos_token_id
    talk = [{"role": "user", "content": "問"}, {"role": "assistant", "content": "答"}]
    assert loaded.apply_chat_template(talk, tokenize=False) == "<|user|>問<|assistant|>答</s>"


def test_tokenizers_that_cannot_be_made_are_refused(texts: Path, tmp_path: Path, tokenizer: Path):
    assert call("tokenizer", "train", str(texts), "--out", str(tmp_path / "a"), "--vocab", "200") == 78
    assert call("tokenizer", "train", str(texts), "--out", str(tmp_path / "a"), "--vocab", "90000") == 78
    assert call("tokenizer", "train", str(texts), "--out", str(tokenizer)) == 78
    assert not list(tmp_path.iterdir())


def pretrain(texts: Path, tokenizer: Path, out: Path, *extra: str) -> int:
    return call(
        "train",
        "method=pretrain",
        f"model.name={tokenizer}",
        "model.dtype=bfloat16",
        "model.architecture.hidden_size=64",
        "model.architecture.num_hidden_layers=2",
        "model.architecture.num_attention_heads=2",
        f"data.train={texts}",
        "data.eval=0.1",
        "data.max_length=64",
        "data.packing=true",
        "data.on_long=split",
        f"training.output_dir={out}",
        "batch_size=8",
        "gradient_accumulation_steps=1",
        "max_steps=24",
        "learning_rate=3e-3",
        "eval_steps=12",
        "save_steps=6",
        "progress=false",
        *extra,
    )


def test_a_model_from_scratch_learns_resumes_to_the_same_bits_and_is_plain(
    texts: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers import AutoModelForCausalLM

    assert pretrain(texts, tokenizer, tmp_path / "whole") == 0
    scores = [
        row["eval_bits_per_character"]
        for row in read_metrics(tmp_path / "whole" / "metrics.jsonl")
        if "eval_loss" in row
    ]
    assert scores[-1] < 0.75 * scores[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.dtype is torch.bfloat16
    assert model.config.model_type == "llama"
    assert sum(parameter.numel() for parameter in model.parameters()) < 200_000
    monkeypatch.setenv("AIFT_FAULT", "step:term@9")
    assert pretrain(texts, tokenizer, tmp_path / "stopped") == 75
    monkeypatch.delenv("AIFT_FAULT")
    assert pretrain(texts, tokenizer, tmp_path / "stopped", "--resume") == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "stopped")
    assert weights_digest(tmp_path / "whole") == weights_digest(tmp_path / "stopped")
    # And it is a base like any other.
    assert (
        call(
            "train",
            f"model={tmp_path / 'whole'}",
            "method=lora",
            f"data.train={texts}",
            f"training.output_dir={tmp_path / 'lora'}",
            "max_steps=2",
        )
        == 0
    )


def test_a_config_file_beside_the_tokenizer_serves_as_architecture(
    texts: Path, tokenizer: Path, tmp_path: Path, logged
):
    """Also where transformers would choose a tokenizer class, by the model's type, that reads the file otherwise."""
    import shutil

    from transformers import Qwen2Config

    folder = tmp_path / "qwen"
    shutil.copytree(tokenizer, folder)
    Qwen2Config(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    ).save_pretrained(folder)
    code = call(
        "train",
        "method=pretrain",
        f"model={folder}",
        f"data.train={texts}",
        "data.on_long=split",
        f"training.output_dir={tmp_path / 'out'}",
        "max_steps=2",
    )
    assert code == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))["model_type"] == "qwen2"
    assert "tokenizes differently from tokenizer.json" in logged()


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (["method=pretrain", "model={tokenizer}"], 78, "needs model.architecture"),
        (["method=pretrain", "model=nowhere"], 66, "folder with a tokenizer"),
        (["method=lora", "model={tokenizer}", "model.architecture.hidden_size=64"], 78, "method: pretrain"),
        (["method=pretrain", "model={tokenizer}", "model.architecture.hidden_size=63"], 78, "multiple of twice"),
        (["method=pretrain", "model={tokenizer}", "lora.r=4"], 78, "have no effect"),
        (["method=pretrain", "model={tokenizer}", "model.architecture.num_key_value_heads=3"], 78, "must divide"),
    ],
)
def test_refusals(texts: Path, tokenizer: Path, tmp_path: Path, logged, arguments: list[str], code: int, word: str):
    filled = [argument.format(tokenizer=tokenizer) for argument in arguments]
    assert call("train", f"data.train={texts}", f"training.output_dir={tmp_path / 'out'}", *filled) == code
    assert word in logged()
    assert not (tmp_path / "out").exists()
