"""Kernels that run on a CUDA device only, against plain torch in fp32: `make test-gpu` where there is one."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model
from tests.unit.kernels.test_flex import alone

from ai_finetuning.kernels.attention import (
    FLEX,
    IMPLEMENTATIONS,
    VARLEN,
    implementations_for,
)
from ai_finetuning.kernels.lora import why_not_one_operation
from ai_finetuning.kernels.loss import why_not_one_kernel
from ai_finetuning.models.adapters import add_lora, without_input_casts
from ai_finetuning.models.liger import find_replacements
from ai_finetuning.models.lora_forward import lighten

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
# Relative L2 distance to fp32, by what is computed in.
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 5e-3}


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float().cpu() - other).norm() / other.norm().clamp_min(1e-12))


@pytest.mark.parametrize("width", [64, 80, 128, 256])
@pytest.mark.parametrize(("window", "cap"), [(None, None), (100, None), (None, 30.0)])
@pytest.mark.parametrize("name", [VARLEN, FLEX])
def test_attention_and_its_gradients_are_those_of_each_document_alone(name: str, window, cap, width: int):
    if name not in implementations_for(GPU) or (name == VARLEN and cap):
        pytest.skip("not a choice here")
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    lengths, generator = (1, 7, 130, 2000), torch.Generator().manual_seed(0)
    wide = [
        torch.randn(1, heads, sum(lengths), width, generator=generator).to(dtype).float().requires_grad_()
        for heads in (4, 2, 2)
    ]
    leaves = [x.detach().to(GPU, dtype).requires_grad_() for x in wide]
    options = {"seq_lens": lengths, "sliding_window": window, "softcap": cap}
    got, _ = IMPLEMENTATIONS[name](None, *leaves, None, **options)
    expected = alone(*wide, lengths, scale=width**-0.5, window=window, cap=cap)
    seed = torch.randn(expected.shape, generator=generator)
    mine = torch.autograd.grad(got, leaves, seed.to(GPU, dtype))
    theirs = torch.autograd.grad(expected, wide, seed)
    assert apart(got.detach(), expected.detach()) < TOLERANCE[dtype]
    assert max(apart(one, other) for one, other in zip(mine, theirs, strict=True)) < TOLERANCE[dtype]


@pytest.mark.parametrize("width", [64, 128, 256])
def test_flex_attention_in_fp32_fits_this_gpu(width: int):
    """Its blocks are chosen by what a kernel takes on GPUs that were not there."""
    capability = torch.cuda.get_device_capability()
    if FLEX not in implementations_for(GPU) or (capability < (8, 0) and width > 128):
        pytest.skip("the loop over documents is taken here")
    lengths, generator = (1, 7, 130, 500), torch.Generator().manual_seed(0)
    wide = [torch.randn(1, heads, sum(lengths), width, generator=generator).requires_grad_() for heads in (4, 2, 2)]
    leaves = [x.detach().to(GPU).requires_grad_() for x in wide]
    got, _ = IMPLEMENTATIONS[FLEX](None, *leaves, None, seq_lens=lengths)
    expected = alone(*wide, lengths, scale=width**-0.5, window=None, cap=None)
    seed = torch.randn(expected.shape, generator=generator)
    mine, theirs = torch.autograd.grad(got, leaves, seed.to(GPU)), torch.autograd.grad(expected, wide, seed)
    pairs = [(got.detach(), expected.detach()), *zip(mine, theirs, strict=True)]
    assert max(apart(one, other) for one, other in pairs) < 2e-3


def test_a_document_does_not_see_its_neighbour():
    """Bit by bit, in whichever kernel this GPU takes first."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    attention = IMPLEMENTATIONS[implementations_for(GPU)[0]]
    second = torch.randn(1, 4, 70, 64, device=GPU, dtype=dtype)
    answers = []
    for _ in range(2):
        x = torch.cat([torch.randn(1, 4, 60, 64, device=GPU, dtype=dtype), second], dim=2)
        answers.append(attention(None, x, x, x, None, seq_lens=(60, 70))[0][:, 60:])
    assert torch.equal(*answers)


@pytest.mark.parametrize("cap", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_loss_kernel_is_plain_torch(dtype: torch.dtype, cap: float):
    assert why_not_one_kernel(dtype, GPU, cap) is None


@pytest.mark.parametrize("kind", ["llama", "qwen3_tied", "gemma2"])
def test_liger_computes_norms_mlp_and_rotation(kind: str):
    pytest.importorskip("liger_kernel")
    model = build_model(kind).to(GPU)
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    for compute in (torch.float32, dtype):
        found = find_replacements(model, GPU, compute)
        assert found.why is None
        assert found.chosen is not None
        assert found.chosen.en == "norms, gated MLP, rotation by Liger"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_layer_with_an_adapter_is_one_operation(dtype: torch.dtype):
    if dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("no bf16 here")
    assert why_not_one_operation(dtype, GPU) is None


def test_a_lora_step_in_one_operation_a_layer_is_that_of_the_cpu_in_fp32():
    """With what a run on a GPU puts on: base and adapter as one operation, and Liger where it is."""
    dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    torch.manual_seed(0)
    model = add_lora(build_model("llama"), r=4, alpha=8, target_modules="all-linear")
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    ids = torch.arange(3, 67)[None]

    def gradients(device: torch.device, autocast: torch.dtype | None) -> torch.Tensor:
        model.to(device).zero_grad()
        with torch.autocast(device.type, dtype=autocast or dtype, enabled=autocast is not None):
            loss = model(input_ids=ids.to(device), labels=ids.to(device)).loss
        loss.backward()
        return torch.cat([p.grad.float().cpu().flatten() for p in model.parameters() if p.grad is not None])

    expected = gradients(torch.device("cpu"), None)
    without_input_casts(model)
    lighten(model)
    model.to(GPU)
    find_replacements(model.get_base_model(), GPU, dtype).put_on()
    assert apart(gradients(GPU, dtype), expected) < 3e-2
