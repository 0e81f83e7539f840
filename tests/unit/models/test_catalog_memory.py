"""The catalog's GiB are those of the plan's formula, and near it where the whole configuration is known."""

from __future__ import annotations

import pytest
import torch
from tests.support.catalog_memory import computed, need
from transformers import AutoModelForCausalLM, Gemma2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config, Qwen3MoeConfig

from ai_finetuning.models import catalog
from ai_finetuning.planner.shape import shape_of

GIB = 2**30
# As in the models' config.json.
LLAMA_8B = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_key_value_heads=8, vocab_size=128256
)
LLAMA_13B = LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
QWEN_SMALL = Qwen2Config(
    hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2
)
QWEN_SMALL.tie_word_embeddings = True
GEMMA = Gemma2Config(hidden_size=2304, intermediate_size=9216, num_hidden_layers=26, head_dim=256)
NEOX = GPTNeoXConfig(
    hidden_size=4096, intermediate_size=16384, num_hidden_layers=32, num_attention_heads=32, vocab_size=52224
)
EXPERTS = Qwen3MoeConfig(
    hidden_size=2048, moe_intermediate_size=768, num_experts=128, num_hidden_layers=48, head_dim=128, vocab_size=151936
)
KNOWN = {
    "elyza/Llama-3-ELYZA-JP-8B": LLAMA_8B,
    "elyza/ELYZA-japanese-Llama-2-13b-instruct": LLAMA_13B,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN_SMALL,
    "google/gemma-2-2b-jpn-it": GEMMA,
    "cyberagent/open-calm-7b": NEOX,
    "Qwen/Qwen3-30B-A3B": EXPERTS,
}


def test_the_catalog_holds_what_the_formula_says():
    """`python -m tests.support.catalog_memory` writes it again after a change of the formula."""
    wrong = {
        name: (row.memory_gib, found)
        for name, row in catalog.rows().items()
        if row.memory_gib and (found := computed(row)) is not None and found != row.memory_gib
    }
    assert not wrong
    assert sum(row.hidden_size is not None for row in catalog.rows().values()) > 150


@pytest.mark.parametrize("name", KNOWN)
def test_what_a_row_leaves_out_hardly_matters(name: str):
    with torch.device("meta"):
        shape = shape_of(AutoModelForCausalLM.from_config(KNOWN[name]))
    row = catalog.rows()[name]
    for use in ("lora", "qlora", "full"):
        assert row.memory_gib[use] == pytest.approx(need(shape, use).total / GIB, rel=0.03, abs=0.06), use


def test_experts_are_not_quantized():
    """They are tensors, which quantizers of linear layers leave as they are."""
    needs = catalog.rows()["Qwen/Qwen3-30B-A3B"].memory_gib
    assert needs["qlora"] > 0.95 * needs["lora"]
