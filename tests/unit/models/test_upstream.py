"""What the private names of the libraries stand for, so that an upgrade which changes one is seen here."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from tests.support.models import build_model
from torch import nn

from ai_finetuning.models import _upstream


def test_the_attention_of_a_model_is_read_back():
    model = build_model()
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert _upstream.attention_name(model) == name
    assert _upstream.attention_name(nn.Linear(2, 2)) is None


def test_changes_in_place_are_counted():
    weight = torch.zeros(3)
    before = _upstream.version_of(weight)
    weight.add_(1)
    assert _upstream.version_of(weight) == before + 1


def test_a_tied_head_is_named():
    model = build_model("gemma2")
    assert model.config.tie_word_embeddings
    assert _upstream.tied_weight_names(model) == {"lm_head.weight"}


def test_hooks_of_accelerate_are_seen():
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = nn.Sequential(nn.Linear(2, 2))
    assert not _upstream.has_accelerate_hooks(model)
    add_hook_to_module(model[0], ModelHook())
    assert _upstream.has_accelerate_hooks(model)


def test_weights_of_torchao_are_told_by_their_bits():
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    model = nn.Sequential(nn.Linear(32, 32))
    assert not _upstream.is_torchao_weight(model[0].weight, 8)
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False))
    assert _upstream.is_torchao_weight(model[0].weight, 8)
    assert not _upstream.is_torchao_weight(model[0].weight, 4)


_WITHOUT = """
import sys
from tests.support.models import build_model
from tests.support.parity import in_four_bit
from ai_finetuning.models.adapters import add_lora

add_lora(build_model(), r=2, alpha=4)
print([name for name in ("bitsandbytes", "torch._inductor.compile_fx") if name in sys.modules])
four = add_lora(in_four_bit(build_model()), r=2, alpha=4)
print({type(module).__module__ for module in four.modules() if hasattr(module, "lora_A")})
"""


def test_adapters_need_bitsandbytes_only_where_it_holds_the_weights():
    """Seconds and 39 MiB of every start; a 4-bit model of the same process has peft's layers for it."""
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines() == ["[]", "{'peft.tuners.lora.bnb'}"], done.stderr
