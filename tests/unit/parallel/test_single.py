"""One process on one device: that it is one, and the clip."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ai_finetuning.errors import ConfigError
from ai_finetuning.parallel.processes import STORE, Launched, launched, process_group
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
    monkeypatch.setenv("RANK", "1")  # left in a shell: save_model() would write nothing
    assert launched().is_main
    for name, value in zip(names, ("3", "4", "1"), strict=True):
        monkeypatch.setenv(name, value)
    assert launched() == Launched(3, 4, 1)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two; it must be a whole number of at least 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is -1"),
        ({"LOCAL_RANK": "1.5"}, "LOCAL_RANK is 1.5"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, but WORLD_SIZE is 2"),
    ],
)
def test_numbers_that_no_launcher_writes_are_refused(
    values: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, values.get(name, ""))
    with pytest.raises(ConfigError, match=words) as refusal:
        launched()
    assert "unset" in refusal.value.ja


def test_processes_without_a_place_to_meet_are_refused(monkeypatch: pytest.MonkeyPatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "",
        "MASTER_ADDR": "",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv(STORE, raising=False)
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2 without MASTER_ADDR"), process_group(torch.device("cpu")):
        raise AssertionError


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
