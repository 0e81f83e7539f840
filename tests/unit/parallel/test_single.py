"""One process on one device: that it is one, and the clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ai_finetuning.parallel.processes import Launched, launched
from ai_finetuning.parallel.strategies.single import SingleDevice


def test_a_process_is_alone_where_no_launcher_has_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    """Empty says as little as nothing: a shell's `RANK= aift train` and compose files that hand on what they lack."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert launched() == Launched(0, 1, 0)
    for name in names:
        monkeypatch.setenv(name, "")
    assert launched() == Launched(0, 1, 0)
    for name, value in zip(names, ("3", "4", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert launched() == Launched(3, 4, 1)


@pytest.mark.parametrize("norm", [1e-8, 0.5, 0.9989, 0.99999, 0.9999995, 1.0, 1.0000005, 3.0])
@pytest.mark.parametrize("most", [1.0, 1e-6, 0.3])
def test_gradients_are_clipped_as_torch_clips_them(norm: float, most: float):
    """To the bit, where nothing is to be clipped too."""
    model = nn.Linear(7, 5)
    strategy = SingleDevice(torch.device("cpu"))
    strategy.prepare(model, lambda *_: torch.zeros(()))
    strategy.attach(torch.optim.SGD(model.parameters(), lr=1.0))
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(weight.shape, generator=generator) for weight in model.parameters()]
    size = torch.nn.utils.get_total_norm(gradients)
    for weight, gradient in zip(model.parameters(), gradients, strict=True):
        weight.grad = gradient * (norm * most / size)
    expected = [nn.Parameter(weight.detach().clone()) for weight in model.parameters()]
    for mine, weight in zip(expected, model.parameters(), strict=True):
        assert weight.grad is not None
        mine.grad = weight.grad.clone()
    torch.nn.utils.clip_grad_norm_(expected, most)
    assert strategy.update(torch.zeros(()), most).applied
    for mine, weight in zip(expected, model.parameters(), strict=True):
        assert mine.grad is not None
        assert weight.grad is not None
        assert torch.equal(mine.grad, weight.grad)
