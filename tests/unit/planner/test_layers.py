"""Balanced maps on the meta device: they add up to the plan's estimate, and what the documentation claims of 13B and
30B is arithmetic.
"""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model
from transformers import AutoModelForCausalLM, LlamaConfig

from ai_finetuning.errors import ConfigError
from ai_finetuning.parallel.strategies.device_map import Block, balance, memory_bytes
from ai_finetuning.planner import memory
from ai_finetuning.planner.layers import blocks_of, split_model
from ai_finetuning.planner.shape import shape_of

# hidden, intermediate, layers, heads of Llama 13B and 30B (arXiv:2302.13971, table 2; widths of the released weights).
SIZES = {"13b": (5120, 13824, 40, 40), "30b": (6656, 17920, 60, 52)}
TWO_OF_22_GB = {0: memory_bytes("22GB"), 1: memory_bytes("22GB")}
# batch_size 4 of 512 tokens: the documented defaults.
TOKENS = 4 * 512


def llama(size: str):
    hidden, intermediate, layers, heads = SIZES[size]
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=32000,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def work_of(model, *, full: bool = False, bits: int | None = None, r: int = 16) -> memory.Workload:
    shape = shape_of(model)
    trainable = shape.parameters if full else shape.lora_parameters(r, None)
    return memory.Workload(
        trainable, bits, frozen_bytes=2, tokens=TOKENS, compute_bytes=2, full=full, longest=512, gpu=True
    )


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "qwen3_tied"])
@pytest.mark.parametrize("method", [{"full": True}, {}, {"bits": 4}], ids=["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_sum_to_the_estimate(kind: str, method: dict, checkpointing: bool):
    model = build_model(kind, layers=4)
    work = work_of(model, **method)
    blocks = blocks_of(model, work, checkpointing=checkpointing)
    estimate = memory.estimate(shape_of(model), work, checkpointing=checkpointing)
    rounding = len(blocks)  # KBIT_BYTES times a block's weights is cut to whole bytes
    assert sum(block.weights for block in blocks) == pytest.approx(estimate.weights + estimate.copies, abs=rounding)
    assert sum(block.states for block in blocks) == estimate.gradients_and_optimizer
    activations = sum(block.activations for block in blocks) + max(block.transient for block in blocks)
    assert activations == estimate.activations + estimate.logits


def test_adapters_count_only_where_they_are():
    model = build_model(layers=4)
    targets = ["q_proj", "v_proj"]
    work = memory.Workload(
        shape_of(model).lora_parameters(4, targets), None, frozen_bytes=2, tokens=TOKENS, compute_bytes=2
    )
    blocks = blocks_of(model, work, checkpointing=False, targets=targets)
    assert blocks[0].states == blocks[-1].states == 0
    assert sum(block.states for block in blocks) == 12 * work.trainable


@pytest.mark.parametrize(("size", "bits", "needs"), [("13b", None, [15.0, 14.4]), ("30b", 4, [11.9, 11.9])])
def test_lora_of_13b_and_nf4_lora_of_30b_fit_two_gpus_of_24_gb_on_paper(size: str, bits: int | None, needs: list):
    """The numbers are those of docs/strategies.md and docs/api.ja.md."""
    split = split_model(llama(size), work_of(llama(size), bits=bits), TWO_OF_22_GB, checkpointing=True)
    split.validate_fit()
    assert [round(load.total / 2**30, 1) for load in split.loads] == needs
    # The greedy map would put 33 of 13B's 40 layers on the first GPU (docs/design/distributed.md).
    layers = SIZES[size][2]
    on_first = sum(device == 0 for name, device in split.devices.items() if ".layers." in name)
    assert abs(2 * on_first - layers) <= layers // 8


@pytest.mark.parametrize(
    ("size", "full", "needs"), [("13b", True, ["111.5", "113.8"]), ("30b", False, ["33.5", "34.2"])]
)
def test_what_cannot_fit_is_refused_with_its_arithmetic(size: str, full: bool, needs: list[str]):
    split = split_model(llama(size), work_of(llama(size), full=full), TWO_OF_22_GB, checkpointing=True)
    with pytest.raises(ConfigError) as refusal:
        split.validate_fit()
    for text in (refusal.value.ja, refusal.value.en):
        assert all(f"{need} / 20.5 GiB" in text for need in needs)
        assert "qlora" in text
        assert "fsdp" in text


def test_13b_in_full_needs_what_the_refusal_says():
    """18 bytes a weight: fp32 master 4, its bf16 copy 2, gradient 4, AdamW's moments 8 (arXiv:1910.02054, section
    3.1); the input embedding has no copy.
    """
    model = llama("13b")
    split = split_model(model, work_of(model, full=True), TWO_OF_22_GB, checkpointing=True)
    shape = shape_of(model)
    assert sum(load.weights + load.states for load in split.loads) == 18 * shape.parameters - 2 * shape.looked_up
    assert shape.parameters == 13_015_864_320


def test_uneven_devices_are_filled_evenly():
    """What counts is the fullest device, by its own size; a device that is too small stays empty."""
    gib = 2**30
    blocks = [Block((f"layer{index}",), gib, 0, 0) for index in range(30)]
    loads = balance(blocks, {0: 40 * gib, 1: 20 * gib}).loads
    assert [load.weights // gib for load in loads] == [20, 10]
    loads = balance(blocks[:8], {0: 2 * gib // 10, 1: 24 * gib, 2: 24 * gib}).loads
    assert loads[0].weights == 0
    assert [load.weights // gib for load in loads[1:]] == [4, 4]


def test_a_device_needs_the_scratch_memory_of_its_largest_block_once():
    gib = 2**30
    blocks = [Block((f"layer{index}",), 0, 0, gib, 3 * gib) for index in range(4)]
    loads = balance(blocks, {0: 24 * gib, 1: 24 * gib}).loads
    assert [load.activations for load in loads] == [5 * gib, 5 * gib]
