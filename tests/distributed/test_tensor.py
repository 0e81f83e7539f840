"""Layers cut along tp, alone and under ddp and fsdp, against one fp32 process."""

from __future__ import annotations

import itertools
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import build_model
from tests.support.parity import CPU, Case, differences, take_step
from tests.support.ranks import run_ranks
from transformers import LlamaConfig

from ai_finetuning.errors import ConfigError, ModelError
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.plans import tensor_plan
from ai_finetuning.parallel.collectives.mesh import Sizes, build_mesh
from ai_finetuning.parallel.strategies.distributed import DataParallel
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.parallel.strategies.tensor import parallelize_layers, validate
from ai_finetuning.parallel.weights.materialize import WeightPlacement

KINDS = ("llama", "stablelm", "gpt_neox", "qwen3_tied", "gemma2")
PRODUCT = [
    Case(kind, method, data)
    for kind, method, data in itertools.product(KINDS, ("full", "lora"), ("padded", "packed", "documents"))
]
# What runs by default: every architecture, method, kind of data and layout, not their product.
TWO = [
    Case("llama", "lora", "documents"),
    Case("stablelm", "full", "documents"),
    Case("gpt_neox", "lora", "padded"),
    # Vocabularies that tp does not divide, tied and not; dropout on both sides of the cut.
    Case("qwen3_tied", "full", "packed", vocabulary=403),
    Case("stablelm", "lora", "packed", dropout=0.2),
]
REPLICATED = [Case("llama", "full", "padded"), Case("qwen3_tied", "lora", "documents")]
SHARDED = [
    Case("gpt_neox", "full", "documents"),
    Case("gemma2", "lora", "packed"),
    Case("qwen3_tied", "full", "documents", vocabulary=403, rows=3),
]


HERE = WeightPlacement(CPU)


def cut(model: Any, mesh: Any, weight_placement: WeightPlacement = HERE, *, checkpointing: bool = False) -> None:
    if checkpointing:
        enable_activation_checkpointing(model)
    parallelize_layers(model, mesh, plan=tensor_plan(model), weight_placement=weight_placement)


def tensor(dp: int = 1, sharded: Any = (), checkpointing: bool = False) -> Any:
    """Two ranks share each layer; `sharded`: the cases that run under fsdp."""
    return lambda case: DataParallel(
        CPU,
        build_mesh(Sizes(dp=dp, tp=2), "cpu"),
        sharded=case in sharded,
        parallelize_layers=partial(cut, checkpointing=checkpointing),
    )


def assert_equal(obtained: dict[str, dict[str, float]]) -> None:
    for case, worst in obtained.items():
        assert worst["loss"] < 1e-6, (case, worst)
        assert worst["norm"] < 1e-6, (case, worst)
        assert worst["gradient"] < 5e-6, (case, worst)
        # The step itself is 2e-5; where a gradient is about nothing, Adam magnifies its rounding.
        assert worst["weight"] < 1e-5, (case, worst)
        assert worst["covered"] == 1.0, (case, worst)


def test_two_ranks_share_the_layers_of_one(tmp_path: Path):
    assert_equal(differences(2, TWO, tensor(), tmp_path))


def test_data_ranks_of_tensor_ranks(tmp_path: Path):
    assert_equal(differences(4, [*REPLICATED, *SHARDED], tensor(dp=2, sharded=SHARDED), tmp_path))


def test_recomputed_layers_exchange_again(tmp_path: Path):
    assert_equal(
        differences(2, [Case("llama", "lora", "documents", dropout=0.2)], tensor(checkpointing=True), tmp_path)
    )


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tp", "tp-ddp", "tp-fsdp"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_case_in_every_layout(kind: str, layout: str, tmp_path: Path):
    cases = [case for case in PRODUCT if case.kind == kind]
    dp = 1 if layout == "tp" else 2
    assert_equal(differences(2 * dp, cases, tensor(dp, cases if layout == "tp-fsdp" else ()), tmp_path))


def _owned(rank: int, case: Case) -> tuple[float, float, dict[str, tuple[int, int]]]:
    """The clip norm; the one that counts what every rank holds; by weight (elements owned here, of the whole)."""
    strategy = tensor(dp=2, sharded=[case])(case)
    outcome = take_step(case, strategy)
    everything = sum(float((gradient.astype("float64") ** 2).sum()) for gradient, _, _ in outcome.parts.values())
    parts = {name: int(weight.size) for name, (_, weight, _) in outcome.parts.items()}
    owned = {
        name: (parts[name] if layout.owner else 0, math.prod(layout.shape)) for name, layout in strategy.layouts.items()
    }
    return outcome.norm, everything, owned


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_clip_norm_counts_every_weight_once(method: str, tmp_path: Path):
    """Norms and half of LoRA are the same on both ranks of tp: counted twice they would raise the norm unnoticed."""
    case = Case("llama", method)
    answers = run_ranks(4, _owned, case, folder=tmp_path)
    expected = take_step(case, SingleDevice(CPU)).norm
    assert all(abs(norm - expected) < 1e-6 * expected for norm, _, _ in answers)
    twice = sum(square for _, square, _ in answers) ** 0.5
    assert twice > expected * (1 + 1e-5), "no replicated weight has a gradient here: this test shows nothing"
    for name, (_, size) in answers[0][2].items():
        assert sum(owned[name][0] for _, _, owned in answers) == size, name


def _refused(rank: int) -> list[str]:
    model = build_model("llama")
    mesh = build_mesh(Sizes(tp=2), "cpu")["tp"]
    cut(model, mesh)
    refusals = []
    for late in (lambda: add_lora(model, r=4, alpha=8), lambda: cut(model, mesh)):
        try:
            late()
        except ModelError as error:
            refusals.append(error.en)
    before = build_model("llama")
    add_lora(before, r=4, alpha=8, use_dora=True)
    try:
        cut(before, mesh)
    except ModelError as error:
        refusals.append(error.en)
    return refusals


def test_lora_after_the_cut_is_refused(tmp_path: Path):
    """An adapter added late would train on every rank for itself (docs/design/distributed.md, fault 2)."""
    late, again, dora = run_ranks(2, _refused, folder=tmp_path)[0]
    assert "add LoRA before" in late
    assert "already sharded" in again
    assert "DoRA" in dora


LLAMA = LlamaConfig(num_attention_heads=12, num_key_value_heads=4, hidden_size=96)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"tensor": 8}, ("8", "12 attention heads", "4 key-value heads", "1, 2, 4")),
        ({"tensor": 3}, ("tensor_parallel_size 3", "1, 2, 4")),
        ({"tensor": 2, "bits": 4}, ("4-bit", "method: lora")),
        ({"tensor": 2, "optimizer": "muon"}, ("muon", "tensor_parallel_size", "adamw")),
        ({"tensor": 2, "optimizer": "adamw_8bit"}, ("adamw_8bit", "adamw")),
        ({"sharded": True, "optimizer": "muon"}, ("muon", "strategy: fsdp")),
        ({"sharded": True, "optimizer": "adamw_8bit"}, ("adamw_8bit", "strategy: ddp")),
        ({"tensor": 2, "use_dora": True}, ("use_dora: false",)),
    ],
)
def test_refusals_name_numbers_and_the_way_out(settings: dict[str, Any], parts: tuple[str, ...]):
    defaults = {"tensor": 1, "sharded": False, "bits": None, "optimizer": "adamw"}
    with pytest.raises(ConfigError) as caught:
        validate(LLAMA, **(defaults | settings))
    assert all(part in caught.value.en for part in parts), caught.value.en


def test_what_can_be_trained_is_not_refused():
    validate(LLAMA, tensor=4, sharded=True, bits=None, optimizer="adamw")
    validate(LLAMA, tensor=1, sharded=True, bits=4, optimizer="adamw")
    validate(LLAMA, tensor=1, sharded=False, bits=4, optimizer="adamw_8bit")


def test_models_that_no_plan_fits_are_refused():
    """Attention whose norms would see a rank's heads only, and a model with other names than Llama's."""
    import transformers

    sizes = {
        "vocab_size": 64,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
    }
    gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel"):
        tensor_plan(gpt2)
    normed = transformers.StableLmForCausalLM(
        transformers.StableLmConfig(**sizes, num_key_value_heads=4, qk_layernorm=True)
    )
    with pytest.raises(ModelError, match=r"q_layernorm"):
        tensor_plan(normed)
    mixture = transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**sizes, num_key_value_heads=4, num_local_experts=2)
    )
    with pytest.raises(ModelError, match=r"moe_tp_experts"):
        tensor_plan(mixture)
