"""Time by the table: it follows what a step does and what a card can, and is near the one step that was counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from ai_finetuning.parallel.collectives.mesh import Sizes
from ai_finetuning.parallel.plan import ParallelPlan
from ai_finetuning.planner.gpus import CARDS, Gpus
from ai_finetuning.planner.memory import Workload
from ai_finetuning.planner.roofline import Pass, Rates, micro_batch, sent, stated_rates, step_seconds
from ai_finetuning.planner.shape import ModelShape, shape_of


@pytest.fixture(scope="module")
def eight_billion() -> ModelShape:
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        return shape_of(AutoModelForCausalLM.from_config(config))


def lora(shape: ModelShape, tokens: int = 4096) -> Workload:
    return Workload(shape.lora_parameters(16, None), None, frozen_bytes=2, tokens=tokens, compute_bytes=2)


def taken(shape: ModelShape, work: Workload, *, checkpointing: bool = True) -> Pass:
    return micro_batch(shape, work, checkpointing=checkpointing, document=4096, updates=1)


def seconds(one: Pass, card: str = "h100", precision: str = "bf16") -> float:
    return step_seconds(one, precision, stated_rates(Gpus(CARDS[card])), ParallelPlan(), 1)


def test_it_is_near_the_step_that_was_counted(eight_billion: ModelShape):
    """LoRA of an 8B Llama, 4,096 tokens, checkpointing, on an H100: products 0.29 s, other traffic 0.24 s (643 GB at 2.7
    TB/s), attention about 0.06 s.
    """
    one = taken(eight_billion, lora(eight_billion))
    assert one.operations == pytest.approx(181.5e12, rel=0.05)
    assert one.moved == pytest.approx(643e9 + 26.4e9, rel=0.05)
    assert seconds(one) == pytest.approx(0.59, rel=0.1)


def test_more_work_and_slower_cards_take_longer(eight_billion: ModelShape):
    work = lora(eight_billion)
    plain = seconds(taken(eight_billion, work))
    full = replace(work, full=True, trainable=eight_billion.parameters)
    assert plain > seconds(taken(eight_billion, work, checkpointing=False))
    assert plain < seconds(taken(eight_billion, replace(work, bits=4)))
    assert plain < seconds(taken(eight_billion, full))
    assert plain < seconds(taken(eight_billion, work), "a100-80") < seconds(taken(eight_billion, work), "4090")
    assert seconds(taken(eight_billion, work), "t4", "fp16") > seconds(taken(eight_billion, work), "l4")
    assert seconds(taken(eight_billion, work), "h100", "fp32") > plain


def test_a_tiny_micro_batch_waits_for_the_host(eight_billion: ModelShape):
    """8 us for each of some ten thousand kernels, however fast the card is."""
    one = taken(eight_billion, lora(eight_billion, tokens=1))
    assert one.seconds(1e30, 1e30) == pytest.approx(330 * 32 * 8e-6)


def test_devices_that_compute_at_once_add_up(eight_billion: ModelShape):
    one = taken(eight_billion, lora(eight_billion))

    def rate(plan: ParallelPlan, number: float = 4) -> float:
        tokens = 4096 * number * plan.sizes.dp
        return tokens / step_seconds(one, "bf16", stated_rates(Gpus(CARDS["a5000"], 2)), plan, number)

    alone = rate(ParallelPlan("model_parallel"))
    assert rate(ParallelPlan("ddp", Sizes(dp=2))) == pytest.approx(2 * alone)
    assert rate(ParallelPlan("tensor", Sizes(tp=2))) == pytest.approx(2 * alone)
    assert rate(ParallelPlan("pipeline", Sizes(pp=2))) == pytest.approx(2 * alone * 4 / 5)  # the bubble


def test_what_data_ranks_send_takes_time_where_it_is_more_than_they_compute(eight_billion: ModelShape):
    """Over PCI Express a rank of fsdp waits for weights; over NVLink it computes longer than it waits."""
    work = lora(eight_billion)
    one = taken(eight_billion, work)
    ddp, fsdp = ParallelPlan("ddp", Sizes(dp=2)), ParallelPlan("fsdp", Sizes(dp=2), sharded=True)
    weights, gradients = 2 * eight_billion.parameters, 4 * work.trainable
    assert sent(eight_billion, work, ParallelPlan(), 4) == 0
    assert sent(eight_billion, work, ddp, 4) == gradients
    assert sent(eight_billion, work, fsdp, 4) == 4 * (weights + gradients / 2)
    assert 0.25 * 4 * weights < sent(eight_billion, replace(work, bits=4), fsdp, 4) < 0.4 * 4 * weights

    def step(card: str, plan: ParallelPlan) -> float:
        rates = stated_rates(Gpus(CARDS[card], 2))
        return step_seconds(one, "bf16", rates, plan, 4, sent(eight_billion, work, plan, 4))

    assert step("h100", fsdp) == step("h100", ddp)
    small = replace(work, tokens=256)
    one = taken(eight_billion, small)
    assert step("4090", fsdp) > 2 * step("4090", ddp)


def test_the_line_says_where_it_is_from():
    source = stated_rates(Gpus(CARDS["4090"], 2)).source
    assert "4090 x 2" in source.ja
    assert "実測ではありません" in source.ja
    assert "not measured" in source.en
    assert isinstance(stated_rates(Gpus(CARDS["t4"])), Rates)
    assert "bf16" not in stated_rates(Gpus(CARDS["t4"])).tflops
