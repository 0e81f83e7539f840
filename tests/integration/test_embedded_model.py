"""The model that ships: what is in its folder, what it knows, and that its name works wherever a model's name does."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import yaml
from recipes.kotoha.corpus import corpus
from tests.support.commands import call

from ai_finetuning import DataConfig, JapaneseModel, LoRAFinetuningTrainer, embedded
from ai_finetuning.embedded import questions
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import InputNotFoundError
from ai_finetuning.evaluation.fidelity import agreement, logits_of
from ai_finetuning.evaluation.scoring import score
from ai_finetuning.models import catalog
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.probes import PROBES
from ai_finetuning.models.tokenizers import load_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes" / "kotoha-tiny"
# Written for this test: nobody's training text.
PROSE = (
    "朝から細かい雨が降っていた。私は傘をさして駅まで歩き、いつもの電車に乗った。窓の外には濡れた屋根がつづき、遠くの山は霧にかくれて見えない。"
    "となりの席の老人が、膝の上の包みを大事そうに抱えている。何が入っているのだろうと思ったが、聞くわけにもいかなかった。",
    "村のはずれに一軒の古い家があった。そこには婆さんが一人で住んでいて、子どもたちが遊びに行くと、きまって昔の話をしてくれるのだった。",
)


@pytest.fixture(scope="module")
def folder(kotoha: str) -> Path:
    return embedded.model_folder(kotoha)


@pytest.fixture(scope="module")
def numbers(folder: Path) -> dict:
    """training.json: what the card states."""
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(kotoha: str):
    return load_causal_lm(kotoha, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer(kotoha: str):
    return load_tokenizer(kotoha)


def bits_per_character(model, tokenizer, texts) -> float:
    config = DataConfig(max_length=512, on_long="split", cache=False)
    value = score(model, tokenizer, [{"text": text} for text in texts], config)["eval_bits_per_character"]
    assert value is not None
    return value


def test_what_ships_is_small_whole_and_plain(folder: Path, numbers: dict):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "training.json",
        "loss.png",
    }
    assert sum(path.stat().st_size for path in folder.iterdir()) < 25_000_000
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.dtype is torch.bfloat16
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert 5e6 < sum(parameter.numel() for parameter in plain.parameters()) == numbers["parameters"] < 12e6
    talk = [{"role": "user", "content": "問"}, {"role": "assistant", "content": "答"}]
    assert (
        AutoTokenizer.from_pretrained(folder).apply_chat_template(talk, tokenize=False)
        == "<|user|>問<|assistant|>答</s>"
    )
    card = (folder / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "cc0-1.0"
    assert f"{numbers['bits_per_character']['held_out_works']:.3f}" in card
    assert f"{numbers['tokens']:,} tokens" in card
    assert all(text in card for _, text in numbers["samples"]["texts"])


def test_the_catalog_says_what_the_files_say(folder: Path, kotoha: str, numbers: dict):
    row, config = catalog.lookup(kotoha), json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert row is not None
    assert row.params_b == pytest.approx(numbers["parameters"] / 1e9, rel=0.02)
    assert (row.model_type, row.vocab_size, row.context_length) == (
        config["model_type"],
        config["vocab_size"],
        config["max_position_embeddings"],
    )
    assert row.licence_notices() == []


def test_transformers_and_sentencepiece_read_the_tokenizer_alike(folder: Path, tokenizer):
    import sentencepiece

    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert len(tokenizer) == reference.get_piece_size()
    for text in [
        *PROBES,
        *PROSE,
        *corpus(30, seed=5),
        "改行\nあり",
        "二つ  空白",
        "<|user|>質問<|assistant|>答え",
        "🍣𠮷",
    ]:
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text, out_type=int)
        assert tokenizer.decode(ids) == text  # nothing is normalised away
    for token in ("\n", "<|system|>", "<|user|>", "<|assistant|>"):
        assert len(tokenizer.encode(token, add_special_tokens=False)) == 1


def test_it_knows_japanese_as_its_card_says(model, tokenizer, numbers: dict):
    stated = numbers["bits_per_character"]
    own = corpus(stated["own_text"]["documents"], stated["own_text"]["seed"])
    assert bits_per_character(model, tokenizer, own) == pytest.approx(stated["own_text"]["value"], abs=0.02)
    untrained = type(model)(model.config).eval()
    assert bits_per_character(untrained, tokenizer, PROSE) > 7.0
    assert bits_per_character(model, tokenizer, PROSE) < 5.0


def test_held_out_works_score_as_its_card_says(shared: Path, model, tokenizer, numbers: dict):
    """The short ones of the works that training never saw, chosen by the recipe's own rule."""
    spec = importlib.util.spec_from_file_location("prepare", RECIPE / "prepare.py")
    assert spec is not None
    assert spec.loader is not None
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)
    with gzip.open(shared / "data" / "prose" / "aozora_large.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["text"] for row in rows if prepare.held_out(row["id"])]
    assert len(texts) == numbers["text"]["held_out"]["documents"]
    short = [text for text in texts if len(text) < 4000]
    stated = numbers["bits_per_character"]["held_out_works_below_4000_characters"]
    assert bits_per_character(model, tokenizer, short) == pytest.approx(stated, abs=0.02)


@pytest.fixture(scope="module")
def adapter(kotoha: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter from `aift train` without a model, 60 steps."""
    out = tmp_path_factory.mktemp("adapter") / "out"
    code = call(
        "train",
        "data.train=embedded:kotoha-qa",
        "data.eval=embedded:kotoha-qa/held_out_phrasings",
        "training.evaluation.verdict=false",
        "data.max_length=128",
        "learning_rate=3e-3",
        "batch_size=16",
        "gradient_accumulation_steps=1",
        "max_steps=60",
        "lora.r=16",
        "lora.lora_alpha=32",
        "lora.lora_dropout=0",
        f"training.output_dir={out}",
        "precision=fp32",
        "progress=false",
    )
    assert code == 0
    return out


def test_lora_teaches_it(adapter: Path):
    scores = [row["eval_loss"] for row in read_metrics(adapter / "metrics.jsonl") if "eval_loss" in row]
    assert scores[-1] < 0.5 * scores[0]


def test_an_adapter_remembers_a_name_that_other_machines_know(kotoha: str, adapter: Path, folder: Path):
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == kotoha
    for path in adapter.iterdir():
        if path.suffix in (".json", ".yaml", ".md", ".html", ".jinja"):
            assert str(folder) not in path.read_text(encoding="utf-8"), path.name


def test_tools_and_plain_peft_load_the_adapter(kotoha: str, adapter: Path, folder: Path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ours, tokenizer = LoRAFinetuningTrainer.load_lora_model(kotoha, str(adapter), device=torch.device("cpu"))
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=ours.dtype), adapter).eval()
    probes = [torch.tensor([tokenizer.encode(text)]) for text in PROBES[:5]]
    assert all(torch.equal(a, b) for a, b in zip(logits_of(ours, probes), logits_of(plain, probes), strict=True))
    assert call("generate", str(adapter), "青森県は何地方ですか？", "--greedy", "--max-new-tokens", "16") == 0
    assert capsys.readouterr().out.strip()


def test_a_merged_copy_read_back_agrees(adapter: Path, tmp_path: Path, logged):
    assert call("merge", str(adapter), "--out", str(tmp_path / "merged")) == 0
    assert "KL 0.0" in logged()
    merged, tokenizer = load_causal_lm(str(tmp_path / "merged"), dtype=torch.float32), load_tokenizer(str(adapter))
    with_adapter, _ = LoRAFinetuningTrainer.load_lora_model(embedded.MODEL, str(adapter))
    probes = [torch.tensor([tokenizer.encode(question)]) for question, _ in questions("held_out_facts")[:20]]
    close = agreement(logits_of(with_adapter.float(), probes), logits_of(merged, probes))
    assert close.kl < 0.005
    assert close.top1 > 0.95


def test_quantized_weights_stay_close_to_the_real_ones(kotoha: str, model, tokenizer):
    """KL over a real model's predictions, which random weights cannot show: 8 bit closer than 4, both close."""
    probes = [torch.tensor([tokenizer.encode(text)]) for text in (*PROSE, *corpus(5, seed=6))]
    expected = logits_of(model, probes)
    half = agreement(expected, logits_of(load_causal_lm(kotoha, dtype=torch.bfloat16), probes))
    eight = agreement(expected, logits_of(load_causal_lm(kotoha, dtype=torch.bfloat16, load_in_8bit=True), probes))
    four = agreement(expected, logits_of(load_causal_lm(kotoha, dtype=torch.bfloat16, load_in_4bit=True), probes))
    assert half.kl < eight.kl < four.kl < 0.15
    assert half.kl < 0.002
    assert eight.kl < 0.02
    assert four.top1 > 0.75


def test_qlora_teaches_it(kotoha: str, tmp_path: Path):
    code = call(
        "train",
        "method=qlora",
        "data.train=embedded:kotoha-qa",
        "data.eval=embedded:kotoha-qa/held_out_facts",
        "training.evaluation.verdict=false",
        "data.max_length=128",
        "learning_rate=3e-3",
        "batch_size=16",
        "gradient_accumulation_steps=1",
        "max_steps=30",
        f"training.output_dir={tmp_path / 'out'}",
        "progress=false",
    )
    assert code == 0
    scores = [row["eval_loss"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row]
    assert scores[-1] < 0.7 * scores[0]
    assert (
        call("generate", str(tmp_path / "out"), "青森県は何地方ですか？", "--bits", "4", "--max-new-tokens", "8") == 0
    )


def test_its_name_works_where_a_model_is_named(kotoha: str, tmp_path: Path, logged):
    assert JapaneseModel(kotoha).generate_japanese("昔々、", max_new_tokens=8, seed=0)
    assert kotoha in JapaneseModel.list_supported_models()
    assert call("data", "show", "embedded:kotoha-qa", "--model", kotoha) == 0
    assert call("data", "stats", "embedded:kotoha-qa/held_out_facts", "--model", kotoha) == 0
    assert call("models", kotoha) == 0
    assert call("train", f"model={kotoha}", "method=full", "data.train=embedded:kotoha-qa", "--dry-run") == 0
    assert (
        call(
            "train",
            "method=pretrain",
            "data.train=embedded:kotoha-qa",
            f"training.output_dir={tmp_path / 'new'}",
            "max_steps=1",
        )
        == 0
    )
    assert call("generate", kotoha, "昔々、", "--bits", "8", "--max-new-tokens", "8") == 0


def test_without_a_model_it_is_used_and_said(kotoha: str, tmp_path: Path, logged):
    assert call("train", "data.train=embedded:kotoha-qa", "--dry-run", f"training.output_dir={tmp_path}") == 0
    assert f"no model is named: using the embedded {kotoha}" in logged()


def test_with_a_model_nothing_is_said(tiny_model_dir: Path, tmp_path: Path, logged):
    assert call("train", f"model={tiny_model_dir}", "data.train=embedded:kotoha-qa", "--dry-run") == 0
    assert "no model is named" not in logged()


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "model=embedded:kotoha-qa", "data.train=embedded:kotoha-qa"],
        ["train", "model=embedded:kotoha", "data.train=embedded:kotoha-qa"],
        ["train", "method=pretrain", "model=embedded:kotoha", "data.train=embedded:kotoha-qa"],
        ["generate", "embedded:kotoha-tiny/", "question"],
        ["data", "stats", "embedded:kotoha-qa", "--model", "embedded:../embedded/kotoha-tiny"],
    ],
)
def test_unknown_names_list_those_that_there_are(arguments: list[str], logged):
    assert call(*arguments) == 66
    assert "there is no embedded model" in logged()


def test_the_list_of_names_is_the_folders_that_hold_a_model(kotoha: str):
    with pytest.raises(InputNotFoundError, match=rf"there are: {kotoha}\.$"):
        embedded.model_folder("embedded:other")
