"""SUPPORTED_MODELS: the documented keys, the true numbers, the ids that do not exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from ai_finetuning import SUPPORTED_MODELS, JapaneseModel
from ai_finetuning.japanese.templates import TEMPLATES
from ai_finetuning.models import catalog

REPOSITORY = Path(__file__).parents[3]


def test_at_least_the_28_models_with_their_keys():
    assert len(SUPPORTED_MODELS) >= 28
    assert JapaneseModel.SUPPORTED_MODELS is SUPPORTED_MODELS
    assert JapaneseModel.list_supported_models() == SUPPORTED_MODELS
    for name, values in SUPPORTED_MODELS.items():
        assert isinstance(values["display_name"], str), name
        assert {
            "parameters_billion",
            "licence",
            "memory_gb",
            "template",
            "stop_tokens",
            "lora_targets",
            "newline",
            "verified",
            "prompt",
            "prompt_source",
        } <= values.keys()
        assert values["verified"] == (values["prompt"] in ("golden", "tokenizer")), name
        assert values["template"] is None or values["template"] in TEMPLATES, name


def test_no_known_id_is_lost():
    """tests/fixtures/model_ids.txt: the ids that the catalog began with."""
    expected = set((REPOSITORY / "tests" / "fixtures" / "model_ids.txt").read_text(encoding="utf-8").split())
    assert len(expected) > 150
    assert expected <= set(SUPPORTED_MODELS), sorted(expected - set(SUPPORTED_MODELS))[:5]


def open_ids() -> list[str]:
    """Ids that the contract names."""
    contract = (REPOSITORY / "docs" / "contract.ja.md").read_text(encoding="utf-8")
    return re.findall(r'"([\w-]+/[\w.-]+)"', contract)


def test_every_id_of_the_contract_is_a_key():
    obtained = [name for name in open_ids() if name.split("/")[0] in {key.split("/")[0] for key in SUPPORTED_MODELS}]
    assert obtained
    assert set(obtained) <= set(SUPPORTED_MODELS)


def test_an_id_that_does_not_exist_warns_and_names_the_real_one(logged):
    aliases = {name: values["alias_of"] for name, values in SUPPORTED_MODELS.items() if "alias_of" in values}
    assert aliases
    for name, real in aliases.items():
        assert catalog.resolve(name) == real
        assert f"{name} is not a published model; using {real}" in logged()
        assert SUPPORTED_MODELS[name]["template"] == SUPPORTED_MODELS[real]["template"]


def test_near_names_are_suggested():
    assert "elyza/ELYZA-japanese-Llama-2-7b-instruct" in catalog.near("elyza/ELYZA-japanese-Llama2-7b-instruct")
    assert catalog.near("zzzz") == []


def test_memory_grows_with_the_method():
    for name, values in SUPPORTED_MODELS.items():
        memory = values["memory_gb"]
        if {"infer", "qlora", "full"} <= memory.keys():
            assert memory["qlora"] < memory["full"], name
            assert values["min_gpu_memory_gb"] >= memory["infer"] - 1


# gemma3 has a vision tower beside, plamo2 needs code from its repository.
@pytest.mark.parametrize("model_type", sorted(set(catalog.LORA_TARGETS) - {"gemma3", "plamo2"}))
def test_lora_targets_are_what_training_takes(model_type: str):
    """Every linear layer but the head of a small model of that architecture; experts of a mixture are none."""
    size = {"hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "vocab_size": 50, "head_dim": 8}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    experts = {"num_local_experts": 2, "num_experts": 2}
    config = AutoConfig.for_model(model_type, **size, **counts, **tokens, **experts)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    head = model.get_output_embeddings()
    linear = {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    assert linear == set(catalog.LORA_TARGETS[model_type])
