"""A linear layer with an adapter as one operation, against plain torch in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ai_finetuning.kernels import lora
from ai_finetuning.kernels.checked import worst_difference
from ai_finetuning.kernels.lora import Adapter, adapted_linear, beside_plain, why_not_one_operation

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-6), (torch.float16, 1e-3), (torch.bfloat16, 6e-3)], ids=str
)
def test_output_and_gradients_are_those_of_plain_torch(dtype: torch.dtype, most: float):
    before = torch.get_rng_state()
    assert worst_difference(beside_plain(dtype, CPU)) < most
    assert torch.equal(torch.get_rng_state(), before)  # a run's own random numbers stay
    if dtype is not torch.float32:
        assert why_not_one_operation(dtype, CPU) is None


def test_a_device_on_which_it_errs_or_fails_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lora, "_scaled", lambda one, other, factor: 0.9 * factor * (one @ other))
    wrong = why_not_one_operation(torch.bfloat16, CPU)
    assert wrong is not None
    assert "differ by" in wrong.en

    def refuses(*_: Any) -> Tensor:
        raise NotImplementedError("no such product here")

    monkeypatch.setattr(lora, "_wide", refuses)
    failing = why_not_one_operation(torch.bfloat16, CPU)
    assert failing is not None
    assert "no such product here" in failing.en


def layer(calls: list[int], dropout: float = 0.0) -> tuple[Any, list[Tensor]]:
    torch.manual_seed(0)
    weight, down, up = torch.randn(6, 4), torch.randn(2, 4).requires_grad_(), torch.randn(6, 2).requires_grad_()

    def base(x: Tensor) -> Tensor:
        calls.append(len(x))
        return F.linear(x, weight)

    adapter = Adapter(down, up, (down.detach(), up.detach()), 0.5, dropout)
    return lambda x: adapted_linear(x, base, weight, adapter), [down, up]


def test_a_block_that_is_computed_again_leaves_out_its_last_base_product():
    """Nothing after it is saved, and the base's product is the most of a layer's work."""
    calls: list[int] = []
    first, weights = layer(calls)
    second, more = layer(calls)
    x = torch.randn(3, 4, requires_grad=True)

    def block(x: Tensor) -> Tensor:
        return second(first(x)[:, :4].tanh())

    expected = torch.autograd.grad(block(x).square().sum(), [x, *weights, *more])
    assert len(calls) == 2
    out: Any = checkpoint(block, x, use_reentrant=False)
    obtained = torch.autograd.grad(out.square().sum(), [x, *weights, *more])
    assert len(calls) == 2 + 2 + 1
    assert all(torch.equal(one, other) for one, other in zip(obtained, expected, strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_an_input_that_needs_no_gradient_costs_none(dropout: float):
    """The first layer's, behind a frozen embedding; and a pass backward that comes twice over one graph."""
    compute, weights = layer([], dropout)
    x = torch.randn(3, 4)
    torch.manual_seed(1)
    loss = compute(x).square().sum()
    once = torch.autograd.grad(loss, weights, retain_graph=True)
    again = torch.autograd.grad(loss, weights)
    torch.manual_seed(1)
    needing = x.clone().requires_grad_()
    torch.autograd.backward(compute(needing).square().sum(), inputs=[needing, *weights])
    assert needing.grad is not None
    for one, two, other in zip(once, again, [weight.grad for weight in weights], strict=True):
        assert other is not None
        assert torch.equal(one, two)
        assert torch.equal(one, other)
