"""Which parts of a model Liger's kernels take, and that a model computes the same through them.

Liger runs on GPUs; here its functions' contract in plain torch stands in for them, with what is peculiar to them: they
write over their inputs. tests/gpu/test_kernels.py has the real ones; in Triton's interpreter their arithmetic is below.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.sweep.families import build as tiny
from tests.unit.kernels.test_triton_loss import lines_of
from tests.unit.models.test_documents import build, distance, reference, step

from ai_finetuning.models import liger
from ai_finetuning.models.activation_checkpointing import enable_activation_checkpointing
from ai_finetuning.models.documents import select_forward_path
from ai_finetuning.models.liger import PLAIN, find_replacements

CPU = torch.device("cpu")
needs_liger = pytest.mark.skipif(
    importlib.util.find_spec("liger_kernel") is None or importlib.util.find_spec("triton") is None,
    reason="Liger is not installed",
)


class _Gated(torch.autograd.Function):
    """As Liger's: the backward pass writes the gradients over what the forward pass has saved."""

    @staticmethod
    def forward(ctx: Any, gate, up):
        ctx.save_for_backward(gate, up)
        return torch.nn.functional.silu(gate) * up

    @staticmethod
    def backward(ctx: Any, gradient):
        gate, up = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [gate.detach().requires_grad_(), up.detach().requires_grad_()]
            mine = torch.autograd.grad(torch.nn.functional.silu(inputs[0]) * inputs[1], inputs, gradient)
        for saved, value in zip((gate, up), mine, strict=True):
            saved.copy_(value)
        return gate, up


class _Rotation(torch.autograd.Function):
    """As Liger's: both passes write over their inputs, which nobody is told."""

    @staticmethod
    def forward(ctx: Any, q, k, cos, sin):
        ctx.save_for_backward(cos, sin)
        for x, turned in zip((q, k), PLAIN.rotate(q, k, cos, sin), strict=True):
            x.copy_(turned)
        return q.view_as(q), k.view_as(k)

    @staticmethod
    def backward(ctx: Any, dq, dk):
        cos, sin = ctx.saved_tensors
        return *PLAIN.rotate(dq, dk, cos, -sin), None, None


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Stand-ins for Liger's functions, counted."""
    counted: Counter = Counter()
    alike = replace(PLAIN, silu=_Gated.apply, rotate=_Rotation.apply)

    def counting(kind: str):
        def call(*given):
            counted[kind] += 1
            return getattr(alike, kind)(*given)

        return call

    monkeypatch.setattr(liger, "_ligers", lambda: liger.Kernels(*map(counting, ("norm", "silu", "gelu", "rotate"))))
    return counted


NORMS = {"Llama": 5, "Mistral": 5, "Qwen2": 5, "Qwen3": 9, "Gemma2": 9, "StableLm": 0}


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("family", NORMS)
def test_a_model_computes_the_same_through_them(calls: Counter, monkeypatch, family: str, lora: bool):
    """Loss and all gradients of two layers, in fp32, with recomputed layers; every call is one of theirs."""
    wrapped, model = build(family, lora=lora)
    wrapped.train()
    loss, expected = reference(wrapped)
    found = find_replacements(model, CPU, torch.float32)
    assert found.why is None
    assert found.chosen is not None
    calls.clear()
    found.put_on()
    _, got, mine = step(wrapped, model, autocast=None, kernels="portable")
    assert got == pytest.approx(loss, rel=1e-5)
    assert distance(mine, expected) < 1e-5
    forwards = calls["silu"] + calls["gelu"]
    assert forwards % 2 == 0
    assert calls["norm"] * 2 == NORMS[family] * forwards
    assert calls["rotate"] == (forwards if family != "StableLm" else 0)
    enable_activation_checkpointing(model)
    _, _, again = step(wrapped, model, autocast=None, kernels="portable")
    assert distance(again, expected) < 1e-5
    found.take_off()
    assert not any("forward" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("family", ["gemma", "gemma3_text", "gemma2"])
def test_gemmas_norms_are_offset_by_one(calls: Counter, family: str):
    model = tiny(family)
    ids = torch.arange(3, 20)[None]
    expected = model(ids).logits
    found = find_replacements(model, CPU, torch.float32)
    found.put_on()
    assert torch.allclose(model(ids).logits, expected, atol=1e-5)
    assert calls["norm"] > 1
    assert calls["gelu"] > 1


def test_what_differs_fails_or_is_unknown_stays_as_it_is(monkeypatch: pytest.MonkeyPatch):
    def fails(*given):
        raise RuntimeError("out of shared memory")

    off = replace(PLAIN, norm=lambda *given: PLAIN.norm(*given) * 1.1, rotate=fails)
    monkeypatch.setattr(liger, "_ligers", lambda: off)
    _, model = build("Llama")
    found = find_replacements(model, CPU, torch.float32)
    assert found.chosen is not None
    assert found.chosen.en == "gated MLP by Liger"
    assert found.why is not None
    assert found.why.en == ("norms: results or gradients differ by 10.0%; rotation: RuntimeError: out of shared memory")
    neox = find_replacements(build("GPTNeoX")[1], CPU, torch.float32)
    assert neox.chosen is None
    assert neox.why is not None
    assert neox.why.en == "Liger knows no layers of gpt_neox"


def test_without_liger_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    found = find_replacements(build("Llama")[1], CPU, torch.float32)
    assert found.chosen is None
    assert found.why is not None
    assert found.why.en == "Liger is not installed (pip install 'ai-finetuning-toolkit[liger]')"


@pytest.mark.parametrize("right", [True, False])
def test_a_path_takes_them_if_the_model_answers_the_same(monkeypatch: pytest.MonkeyPatch, right: bool):
    """Whatever passed alone: the whole model has the last word, and is tried without them."""

    def norm(x, *given):
        return PLAIN.norm(x, *given) * (1 if right or x.shape[1] == 33 else 1.5)  # 33: the comparison of kernels

    monkeypatch.setattr(liger, "DEVICES", ("cpu",))
    monkeypatch.setattr(liger, "_ligers", lambda: replace(PLAIN, norm=norm))
    _, model = build("Qwen3")
    without, _ = select_forward_path(model, CPU, autocast=None, kernels="portable")
    assert without is not None
    assert without.chosen is None
    without.close()
    path, reason = select_forward_path(model, CPU, autocast=None, kernels="portable", layer_kernels=True)
    assert path is not None
    assert reason is not None
    by = "norms, gated MLP, rotation by Liger"
    assert (path.chosen and path.chosen.en) == (by if right else None)
    assert (f"{by}: its answers differ by" in reason.en) is not right
    path.close()
    assert not any("forward" in module.__dict__ for module in model.modules())


@needs_liger
def test_ligers_arithmetic_is_plain_torchs(tmp_path: Path):
    """Its functions by the names and arguments that they have, in Triton's interpreter: results and all gradients."""
    rows = lines_of("interpreted_liger", tmp_path)
    assert {row["kind"]: len(row["errors"]) for row in rows} == {
        "llama": 3,
        "gemma": 3,
        "silu": 3,
        "gelu": 3,
        "rotate": 4,
    }
    assert max(error for row in rows for error in row["errors"]) < 1e-6
