"""The step's paths against one document at a time in fp32, for every family: loss, all gradients, no leak."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from tests.sweep.families import build as tiny
from tests.sweep.families import config_of

from ai_finetuning.data.collate import collate
from ai_finetuning.data.tokenize import IGNORED, Example
from ai_finetuning.engine.loss import make_document_loss
from ai_finetuning.errors import ModelError
from ai_finetuning.execution.build import warn_of_turn
from ai_finetuning.kernels import attention, native
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.kernels.products import (
    OPENBLAS,
    PIECES,
    PIECES_HEADS,
    TORCH,
    TORCH_HEADS,
    why_no_pieces,
    why_not_openblas,
)
from ai_finetuning.models import documents
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.adapters import add_lora
from ai_finetuning.models.documents import select_forward_path, takes_positions, validate_causal
from ai_finetuning.models.parts import windows_of
from ai_finetuning.system import gpu

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# A window of 16 is shorter than the longest document.
FAMILIES = {
    "Llama": {"num_key_value_heads": 2},
    "Qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 16},
    "StableLm": {"num_key_value_heads": 4, "use_qkv_bias": True},
    "Gemma2": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "GPTNeoX": {},
}
FUSED = [name for name in FAMILIES if name != "GPTNeoX"]
REASON = why_unavailable(CPU)
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels here: {REASON}")


def build(family: str, *, lora: bool = False, dropout: float = 0.0):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES | FAMILIES[family])
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases other than their ones and zeros
            parameter.add_(torch.randn_like(parameter) * 0.02)
    if not lora:
        return model, model
    wrapped = add_lora(model, r=4, alpha=8, dropout=dropout)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return wrapped, model


def examples(seed: int = 0) -> list[Example]:
    generator = torch.Generator().manual_seed(seed)
    obtained = []
    for length in (37, 5, 20, 2):
        ids = torch.randint(3, 300, (length,), generator=generator).numpy().astype("int32")
        labels = ids.copy()
        labels[: length // 3] = IGNORED
        obtained.append(Example(ids, labels, length))
    return obtained


def reference(wrapped) -> tuple[float, dict[str, torch.Tensor]]:
    wrapped.zero_grad()
    total = torch.zeros(())
    for item in examples():
        ids, labels = (torch.tensor(part, dtype=torch.int64) for part in (item.input_ids, item.labels))
        logits = wrapped(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total = total + F.cross_entropy(logits, labels[1:], ignore_index=IGNORED, reduction="sum")
    total.backward()
    return float(total.detach()), gradients(wrapped)


def gradients(wrapped) -> dict[str, torch.Tensor]:
    return {name: item.grad.clone() for name, item in wrapped.named_parameters() if item.grad is not None}


def step(wrapped, model, *, autocast: torch.dtype | None, kernels: str, packed: bool = True, products: str = TORCH):
    """(path's name, loss, gradients) of the same documents in one step."""
    path, reason = select_forward_path(model, CPU, autocast=autocast, kernels=kernels, products=products)
    assert path is not None, reason
    documents = examples()
    rows = [[documents[0], documents[1]], [documents[2], documents[3]]] if packed else [[item] for item in documents]
    batch = collate(rows, pad_token_id=0, packed=packed)
    wrapped.zero_grad()
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
            loss = make_document_loss(path)(wrapped, batch)
        loss.backward()
    finally:
        path.close()
    return path.name, float(loss.detach()), gradients(wrapped)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    apart = sum((one[name] - other[name]).square().sum() for name in one)
    return float((apart / sum(item.square().sum() for item in other.values())).sqrt())


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_portable_path_is_exact(family: str, lora: bool, packed: bool):
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    name, got, mine = step(wrapped, model, autocast=None, kernels="portable", packed=packed)
    assert name == "portable"
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5


@pytest.mark.parametrize(
    ("family", "options"), [("granite", {"logits_scaling": 8.0}), ("cohere2", {"logit_scale": 0.25})]
)
def test_logits_that_are_scaled_are_scaled_on_the_portable_path(family: str, options: dict):
    model = tiny(family)
    for name, value in options.items():
        setattr(model.config, name, value)
        if hasattr(model, name):
            setattr(model, name, value)
    loss, expected = reference(model)
    name, got, mine = step(model, model, autocast=None, kernels="portable")
    assert name == "portable"
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5


@needs_kernels
@pytest.mark.parametrize("packed", [True, False], ids=["packed", "unpacked"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_path_is_exact_in_fp32(monkeypatch: pytest.MonkeyPatch, family: str, lora: bool, packed: bool):
    """What `auto` takes in fp32, on a processor without bf16 instructions as on others."""
    monkeypatch.setattr(gpu, "cpu_flags", lambda: frozenset({"avx2"}))
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    if packed:
        enable_activation_checkpointing(model)
    name, got, mine = step(wrapped, model, autocast=None, kernels="auto", packed=packed)
    assert name == "fused"
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5


@pytest.mark.skipif(why_not_openblas() is not None, reason=f"no OpenBLAS here: {why_not_openblas()}")
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FUSED)
def test_products_by_openblas_are_exact(monkeypatch: pytest.MonkeyPatch, family: str, lora: bool):
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    calls, original = [], native.product
    monkeypatch.setattr(native, "product", lambda *given, **options: calls.append(1) or original(*given, **options))
    name, got, mine = step(wrapped, model, autocast=None, kernels="auto", products=OPENBLAS)
    assert name == "fused"
    assert len(calls) > 20
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5


@pytest.mark.skipif(
    why_no_pieces(torch.bfloat16) is not None, reason=f"no pieces here: {why_no_pieces(torch.bfloat16)}"
)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FUSED)
@pytest.mark.parametrize("products", [PIECES, PIECES_HEADS, TORCH_HEADS])
def test_products_in_pieces_are_exact(
    monkeypatch: pytest.MonkeyPatch, products: str, family: str, lora: bool, autocast: torch.dtype | None
):
    """Attention by heads and rows rounded up included."""
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    calls: list[str] = []
    for name in ("product_in_pieces", "attention_forward"):
        original = getattr(native, name)
        noted = functools.partial(
            lambda call, name, *given, **options: calls.append(name) or call(*given, **options), original, name
        )
        monkeypatch.setattr(native, name, noted)
    name, got, mine = step(wrapped, model, autocast=autocast, kernels="fused", products=products)
    assert name == "fused"
    # All products of these small models are thin.
    assert calls.count("product_in_pieces") > 20 if products == PIECES else "product_in_pieces" not in calls
    assert ("attention_forward" in calls) == (family != "Gemma2")  # which caps its scores
    assert got == pytest.approx(loss, rel=1e-5 if autocast is None else 2e-3)
    assert distance(mine, expected) < (1e-5 if autocast is None else 3e-2)


@needs_kernels
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", FUSED)
def test_fused_path_errs_no_more_than_bf16(family: str, lora: bool, checkpointing: bool):
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    if checkpointing:
        enable_activation_checkpointing(model)
    name, got, mine = step(wrapped, model, autocast=torch.bfloat16, kernels="fused")
    assert name == "fused"
    assert got == pytest.approx(loss, rel=2e-3)
    assert distance(mine, expected) < 3e-2


@needs_kernels
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=str)
def test_dropout_repeats_itself_under_checkpointing(autocast: torch.dtype | None):
    """The same random state gives the same masks, also where layers are recomputed."""
    obtained = []
    for checkpointing in (False, True):
        wrapped, model = build("Llama", lora=True, dropout=0.3)
        wrapped.train()
        if checkpointing:
            enable_activation_checkpointing(model)
        torch.manual_seed(7)
        obtained.append(step(wrapped, model, autocast=autocast, kernels="fused"))
    assert obtained[0][0] == obtained[1][0] == "fused"
    assert obtained[0][1] == obtained[1][1]
    assert distance(obtained[0][2], obtained[1][2]) == 0


@pytest.mark.parametrize(
    ("autocast", "kernels"),
    [
        (None, "portable"),
        pytest.param(None, "fused", marks=needs_kernels),
        pytest.param(torch.bfloat16, "fused", marks=needs_kernels),
    ],
)
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma2", "GPTNeoX"])
def test_nothing_leaks(family: str, autocast: torch.dtype | None, kernels: str):
    """Another first document changes no bit of the second one's hidden states."""
    _, model = build(family)
    path, reason = select_forward_path(model, CPU, autocast=autocast, kernels=kernels)
    assert path is not None, reason
    second, positions = torch.randint(3, 300, (1, 9)), torch.cat([torch.arange(6), torch.arange(9)])[None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
        answers = [
            path.hidden(torch.cat([torch.full((1, 6), token), second], dim=1), positions, (6, 9))[6:]
            for token in (5, 77)
        ]
    path.close()
    assert torch.equal(*answers)


@needs_kernels
def test_the_model_comes_back_as_it_was():
    _, model = build("Llama")
    ids = torch.randint(3, 300, (1, 11))
    before = model(input_ids=ids).logits
    path, _ = select_forward_path(model, CPU, autocast=torch.bfloat16, kernels="fused")
    assert path is not None
    assert path.name == "fused"
    path.close()
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config._attn_implementation == "eager"
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_a_processor_without_bf16_instructions_keeps_to_the_portable_path(
    monkeypatch: pytest.MonkeyPatch, weights: torch.dtype
):
    """That the kernels can be compiled there is no reason to choose them."""
    monkeypatch.setattr(gpu, "cpu_flags", lambda: frozenset({"avx2"}))
    _, model = build("Llama")
    path, reason = select_forward_path(model.to(weights), CPU, autocast=torch.bfloat16, kernels="auto")
    assert path is not None
    assert (path.name, path.compiled) == ("portable", False)
    assert str(reason) == "the processor has no bf16 instructions"


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("mistral", "portable"),
        ("gemma3_text", "portable"),
        ("phimoe", "plain"),
        ("qwen2_moe", "plain"),
        ("doge", "plain"),
    ],
)
def test_a_window_that_is_in_the_mask_only_takes_the_plain_path(family: str, expected: str):
    """Windows of 24 tokens: whether a path knows them shows in documents that are longer."""
    model = tiny(family)
    assert windows_of(model.config)
    path, reason = select_forward_path(model, CPU, autocast=None, kernels="portable", longest=60)
    assert (path.name if path is not None else "plain") == expected, reason
    if path is not None:
        path.close()


@pytest.mark.parametrize("family", ["bloom", "jamba", "falcon_h1", "lfm2_moe", "phimoe"])
def test_what_16_bit_would_hide_is_seen(family: str):
    """Their tiny models differ by less than bf16 rounds where documents mix, or a window is left out."""
    path, reason = select_forward_path(tiny(family), CPU, autocast=torch.bfloat16, kernels="portable", longest=60)
    assert path is None
    assert reason is not None


def test_a_probe_is_as_long_as_a_document_of_the_run_needs():
    """Documents that no window cuts are tried short, whatever the window."""
    model = tiny("phimoe")
    path, _ = select_forward_path(model, CPU, autocast=None, kernels="portable", longest=24)
    assert path is not None
    path.close()


@pytest.mark.parametrize("family", ["llama4_text", "afmoe", "bloom", "mamba"])
def test_a_path_that_fails_in_any_way_falls_back(family: str):
    path, reason = select_forward_path(tiny(family), CPU, autocast=None, kernels="auto", longest=60)
    assert path is None
    assert reason is not None
    assert str(reason)


def test_a_model_that_fails_by_itself_is_named():
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(64, 7)
    with pytest.raises(ModelError, match="LlamaForCausalLM itself fails on a short text") as refused:
        select_forward_path(model, CPU, autocast=None, kernels="plain")
    assert refused.value.exit_code == 78


def test_a_model_that_sees_later_tokens_is_refused():
    config = transformers.BertConfig(**SIZES)
    model = transformers.BertLMHeadModel(config)
    with pytest.raises(ModelError, match="is_decoder: true"):
        select_forward_path(model, CPU, autocast=None, kernels="auto")
    config.is_decoder = True
    validate_causal(transformers.BertLMHeadModel(config))


def test_a_model_that_counts_positions_itself_is_given_none():
    """RoBERTa's first position is 2 and more; positions from 0 would be wrong without an error."""
    assert takes_positions(tiny("llama"))
    assert takes_positions(tiny("gpt2"))
    assert not takes_positions(tiny("roberta"))
    with pytest.raises(ModelError, match="answers differently in padded rows"):
        takes_positions(tiny("prophetnet"))


def test_a_vision_tower_keeps_its_own_attention():
    model = tiny("gemma4")
    before = {name: module.config._attn_implementation for name, module in parts(model)}
    path, _ = select_forward_path(model, CPU, autocast=None, kernels="portable", longest=60)
    if path is not None:
        path.close()
    assert {name: module.config._attn_implementation for name, module in parts(model)} == before


def parts(model):
    return [(name, item) for name, item in model.named_modules() if isinstance(item, transformers.PreTrainedModel)]


def test_plain_is_a_choice():
    _, model = build("Llama")
    assert select_forward_path(model, CPU, autocast=None, kernels="plain") == (None, None)


@needs_kernels
def test_masters_are_cast_again_after_an_update():
    """A fused step after an optimizer step uses the new weights."""
    wrapped, model = build("Llama")
    path, _ = select_forward_path(model, CPU, autocast=torch.bfloat16, kernels="fused")
    assert path is not None
    loss = make_document_loss(path)
    batch = collate([[item] for item in examples()], pad_token_id=0, packed=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)
    path.watch(optimizer)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss(wrapped, batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
    for weight in model.parameters():
        assert torch.equal(path.cast(weight), weight.detach().bfloat16())
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.ones_like(model.lm_head.weight))  # as a resume does
    assert torch.equal(path.cast(model.lm_head.weight), torch.ones_like(model.lm_head.weight).bfloat16())
    path.close()


@pytest.mark.parametrize(
    ("gpu_is_here", "triton", "compiled"),
    [(False, False, True), (False, True, True), (True, True, True), (True, False, False)],
)
def test_a_plan_for_a_gpu_counts_its_loss_kernel_where_a_run_can_take_it(
    monkeypatch: pytest.MonkeyPatch, gpu_is_here: bool, triton: bool, compiled: bool
):
    """torch for CUDA has no Triton on Windows; a GPU that is not here is taken for one under Linux."""
    _, model = build("Llama")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton or None if name == "triton" else find(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_is_here)
    monkeypatch.setattr(documents, "implementations_for", lambda device: (attention.FLEX,))
    path = documents.assumed_forward_path(model, torch.device("cuda"), autocast=torch.bfloat16, kernels="auto")
    assert path is not None
    assert path.compiled is compiled
    path.close()


LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    ("family", "changes", "longest", "turn"),
    [
        ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}, 33, 32),
        ("phi3", {"rope_parameters": LONG_ROPE, "original_max_position_embeddings": 32}, 32, None),
        (
            "llama",
            {
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
                "max_position_embeddings": 64,
            },
            100,
            64,
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, 10**6, None),
        ("gemma3_text", {}, 10**6, None),
        ("gpt2", {}, 10**6, None),
    ],
)
def test_rows_that_turn_the_positions_of_those_beside_them_are_said(
    family: str, changes: dict[str, Any], longest: int, turn: int | None, logged
):
    """LongRoPE and dynamic NTK go by the longest row that is computed at once, in transformers as here."""
    warn_of_turn(config_of(family, **changes), longest)
    assert (f"data.max_length={turn}" in logged()) is (turn is not None)
