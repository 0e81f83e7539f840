"""Which weights an adapter goes on: families whose default stays, mixtures of experts, state-space models, names."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.sweep.families import build

from ai_finetuning.errors import ConfigError
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.lora_targets import ALL_LINEAR, resolve_modules_to_save, resolve_targets

# Families that trained before the choice was ours: what they adapt is PEFT's `all-linear`, name by name.
UNCHANGED = [
    "llama",
    "qwen2",
    "gpt_neox",
    "gpt2",
    "stablelm",
    "gemma",
    "gemma2",
    "qwen3",
    "mistral",
    "qwen2_moe",
    "gpt_oss",
    "granitemoe",
    "jamba",
    "bamba",
]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
# What the default is where PEFT's own choice fails.
CHOSEN = {
    "mixtral": ATTENTION,
    "qwen3_moe": ATTENTION,
    "olmoe": ATTENTION,
    "phimoe": ATTENTION,
    "deepseek_v3": {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"},
    "llama4_text": ATTENTION | {"gate_proj", "up_proj", "down_proj"},
    "mamba": {"in_proj", "x_proj", "dt_proj"},
    "mamba2": {"in_proj"},
    "falcon_h1": ATTENTION | {"in_proj", "gate_proj", "up_proj", "down_proj"},
    "nemotron_h": ATTENTION | {"in_proj", "up_proj", "down_proj"},
}
EXPERTS = ["experts.gate_up_proj", "experts.down_proj"]


def adapted(model: torch.nn.Module) -> set[str]:
    return {name.removesuffix(".lora_A") for name, module in model.named_modules() if name.endswith(".lora_A")}


def learns(model: torch.nn.Module) -> None:
    """One step in training mode moves the loss and gives every B a gradient where it takes part."""
    model.train()
    ids = torch.randint(3, 300, (1, 20), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("family", UNCHANGED)
def test_families_that_trained_before_keep_their_targets(family: str):
    ours = add_lora(build(family), r=2, alpha=4, dropout=0.05)
    theirs = get_peft_model(build(family), LoraConfig(r=2, target_modules=ALL_LINEAR, fan_in_fan_out=family == "gpt2"))
    assert adapted(ours) == adapted(theirs)


@pytest.mark.parametrize("family", CHOSEN)
def test_a_default_adapter_trains_what_can_carry_one(family: str):
    model = build(family)
    assert {name.rpartition(".")[2] for name in resolve_targets(model, None).modules} == CHOSEN[family]
    wrapped = add_lora(model, r=2, alpha=4, dropout=0.05)
    assert {name.rpartition(".")[2] for name in adapted(wrapped)} == CHOSEN[family]
    learns(wrapped)


@pytest.mark.parametrize("family", ["mixtral", "mamba", "phimoe", "deepseek_v3", "llama"])
def test_a_model_without_weights_answers_the_same(family: str):
    """A run is refused, and its memory planned, before weights are read."""
    with torch.device("meta"):
        empty = build(family)
    assert resolve_targets(empty, None) == resolve_targets(build(family), None)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_experts_train_only_where_they_are_named(family: str, caplog: pytest.LogCaptureFixture):
    untouched = resolve_targets(build(family), None)
    assert set(untouched.experts) == set(EXPERTS)
    caplog.set_level("INFO")
    untouched.say()
    assert "lora.target_parameters trains them" in caplog.text
    wrapped = add_lora(build(family), r=2, alpha=4, dropout=0.5, target_parameters=EXPERTS)
    trained = {name for name, weight in wrapped.named_parameters() if weight.requires_grad and ".experts." in name}
    assert trained
    layers = [module for module in wrapped.modules() if hasattr(module, "lora_dropout")]
    dropouts = {
        (type(module).__name__ == "ParamWrapper", getattr(module.lora_dropout["default"], "p", 0.0))
        for module in layers
    }
    assert dropouts == {(True, 0.0), (False, 0.5)}
    learns(wrapped)
    resolve_targets(build(family), None, EXPERTS).say()
    assert "experts.down_proj (dropout 0)" in caplog.text


def test_the_size_of_an_adapter_on_experts_is_known_beforehand():
    targets = resolve_targets(build("mixtral"), ["q_proj"], EXPERTS)
    wrapped = add_lora(build("mixtral"), r=2, alpha=4, target_modules=["q_proj"], target_parameters=EXPERTS)
    real = sum(weight.numel() for name, weight in wrapped.named_parameters() if weight.requires_grad if "exp" in name)
    assert targets.parameter_weights(2) == real


@pytest.mark.parametrize(
    ("family", "names", "expected"),
    [
        ("llama", ["q_prj"], "near names: q_proj"),
        ("llama", ["q_proj", "model.layers.99.self_attn.v_proj"], "near names: v_proj"),
        ("llama", ["act_fn"], "names act_fn"),
        ("mamba", ["in_proj", "out_proj"], "fast kernels read its weight"),
        ("phimoe", ["router"], "computes more than a linear layer"),
        ("deepseek_v3", ["gate_proj"], "lora.target_parameters"),
        ("mixtral", ["w1"], "names w1"),
    ],
)
def test_a_target_that_cannot_act_is_refused(family: str, names: list[str], expected: str):
    with pytest.raises(ConfigError) as refused:
        resolve_targets(build(family), names)
    assert expected in refused.value.en
    assert refused.value.exit_code == 78


def test_a_misspelt_parameter_is_refused():
    with pytest.raises(ConfigError, match="near names: gate_up_proj"):
        resolve_targets(build("mixtral"), None, ["experts.gate_up_prj"])
    with pytest.raises(ConfigError, match="use_dora"):
        resolve_targets(build("mixtral"), None, EXPERTS, use_dora=True)


def test_a_misspelt_module_to_save_is_refused():
    model = build("llama")
    assert resolve_modules_to_save(model, ["lm_head", "embed_tokens"]) == ["lm_head", "embed_tokens"]
    for wrong, near in (("lm_heads", "lm_head"), ("head", "near names: "), ("embed_token", "embed_tokens")):
        with pytest.raises(ConfigError, match=near):
            resolve_modules_to_save(model, [wrong])


def test_a_module_to_save_is_no_other_that_ends_alike():
    wrapped = add_lora(build("llama"), r=2, alpha=4, target_modules=["q_proj"], modules_to_save=["norm"])
    saved = {name.split(".modules_to_save")[0] for name, _ in wrapped.named_parameters() if "modules_to_save" in name}
    assert saved == {"base_model.model.model.norm"}


def test_a_model_without_such_layers_is_refused():
    class Empty(torch.nn.Module):
        def get_output_embeddings(self) -> None:
            return None

    with pytest.raises(ConfigError, match="no linear layer that can carry LoRA"):
        resolve_targets(Empty(), None)
