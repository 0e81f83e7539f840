"""A config.json that names sizes of no model: refused before anything is built from it, with and without weights."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from ai_finetuning.config.lora import LoRAConfig
from ai_finetuning.config.model import ModelConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.errors import ModelError
from ai_finetuning.execution.adapter_start import with_adapter_settings
from ai_finetuning.models.adapters import add_lora, load_adapter
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.models.sizes import validate_sizes
from ai_finetuning.models.source import find_model, find_tokenizer
from tests.support.commands import call

HUGE: dict[str, dict[str, object]] = {
    "num_hidden_layers": {"num_hidden_layers": 10**8},
    "hidden_size": {"hidden_size": 10**8},
    "vocab_size": {"vocab_size": 10**10},
    "intermediate_size": {"intermediate_size": 10**9},
    "num_attention_heads": {"num_attention_heads": 10**9},
    "num_key_value_heads": {"num_key_value_heads": 10**9},
    "head_dim": {"head_dim": 10**7},
    "num_experts": {"num_experts": 10**8},
    "max_position_embeddings": {"max_position_embeddings": 10**12},
    "num_labels": {"num_labels": 10**9},
    "in a part": {"text_config": {"num_hidden_layers": 10**8}},
    "in a list": {"parts": [{"num_layers": 10**8}]},
    "negative": {"num_hidden_layers": -(10**8)},
    "a float": {"num_hidden_layers": 1e300},
    "many digits": {"hidden_size": 10**400},
    "attention_types": {"attention_types": [[["global", "local"], 10**9]]},
    "width and pieces": {"vocab_size": 2**23, "hidden_size": 2**17},
    "layers and width": {"num_hidden_layers": 900, "hidden_size": 2**15, "intermediate_size": 2**17},
    "experts and layers": {"num_experts": 2**13, "num_hidden_layers": 500},
}


def with_config(folder: Path, values: dict[str, object]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


@pytest.fixture
def received(tiny_model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "received"))


@pytest.mark.parametrize("values", HUGE.values(), ids=HUGE)
def test_a_size_that_no_model_has_is_refused_before_anything_is_built(received: Path, values: dict[str, object]):
    with_config(received, values)
    before = time.thread_time()
    for look in (find_model, find_tokenizer, load_causal_lm):
        with pytest.raises(ModelError, match=r"in its config\.json|its config\.json has"):
            look(str(received))
    assert time.thread_time() - before < 5


@pytest.mark.parametrize("key", ["head_dim", "hidden_size", "num_attention_heads"])
def test_a_size_that_is_no_whole_number_is_refused(key: str):
    with pytest.raises(ModelError, match="whole number"):
        validate_sizes("m", {"text_config": {key: 0.5}})
    validate_sizes("m", {key: 4.0, "rope_theta": 0.5})


@pytest.mark.parametrize(
    "values", [{"num_hidden_layers": 10**8}, {"vocab_size": 10**10}, {"text_config": {"hidden_size": 10**9}}]
)
def test_every_verb_that_reads_a_configuration_refuses_it(received: Path, tmp_path: Path, values, logged):
    """Weights or not: training, its plan, a model from scratch, answering, merging, quantizing."""
    with_config(received, values)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "首都は？", "output": "東京です。"}\n', encoding="utf-8")
    run = [f"model={received}", f"data.train={rows}", f"training.output_dir={tmp_path / 'out'}"]
    for arguments in (
        ["generate", str(received), "首都は？"],
        ["train", *run, "method=lora", "--dry-run"],
        ["train", *run, "method=full"],
        ["data", "stats", str(rows), "--model", str(received)],
        ["quantize", str(received), "--bits", "4", "--out", str(tmp_path / "q")],
    ):
        assert call(*arguments) == 78, arguments
    (received / "model.safetensors").unlink()
    for arguments in (["train", *run, "method=pretrain", "--dry-run"], ["train", *run, "method=pretrain"]):
        assert call(*arguments) == 78, arguments
    assert "internal error" not in logged()


def test_sizes_in_settings_have_the_same_ceilings(tmp_path: Path, kotoha: str):
    for key, value in (("num_hidden_layers", 10**8), ("hidden_size", 10**9), ("max_position_embeddings", 10**12)):
        assert (
            call("train", f"model={kotoha}", "method=pretrain", f"model.architecture.{key}={value}", "--dry-run") == 78
        )


def test_a_rank_is_that_of_the_file(tmp_path: Path):
    folder = tmp_path / "adapter"
    add_lora(load_causal_lm("embedded:kotoha-tiny", dtype="float32"), r=4, alpha=8).save_pretrained(folder)
    file = folder / "adapter_config.json"
    for values in ({"r": 10**8}, {"rank_pattern": {"q_proj": 10**8}}):
        plain = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(plain | values), encoding="utf-8")
        with pytest.raises(ModelError, match="100,000,000"):
            load_adapter(load_causal_lm("embedded:kotoha-tiny"), folder)
        file.write_text(json.dumps(plain), encoding="utf-8")


@pytest.mark.parametrize("rank", [10**19, 0, "8", 1.5])
def test_a_rank_that_training_would_go_on_with_is_a_number(tmp_path: Path, rank: object):
    """`lora.adapter` reads it for the plan, before the weights are looked at."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}), encoding="utf-8")
    (tmp_path / "adapter_model.safetensors").touch()
    config = RunConfig(model=ModelConfig("m"), lora=LoRAConfig(adapter=str(tmp_path)))
    with pytest.raises(ModelError, match="cannot be read"):
        with_adapter_settings(config)


@pytest.mark.slow
def test_no_family_of_transformers_is_refused():
    """The sizes that its configurations have by default are those of real models."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    seen = 0
    for name in CONFIG_MAPPING_NAMES:
        try:
            values = CONFIG_MAPPING[name]().to_dict()
        except Exception:
            continue  # needs values, or packages that are not here
        validate_sizes(name, values)
        seen += 1
    assert seen > 200
