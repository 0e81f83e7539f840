"""A model's mode for a moment."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model
from torch import nn

from ai_finetuning.models.modes import eval_mode, evaluating


def modes(model: nn.Module) -> set[bool]:
    return {module.training for module in model.modules()}


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_also_after_an_error(training: bool):
    model = build_model().train(training)
    with evaluating(model):
        assert modes(model) == {False}
        assert not torch.is_grad_enabled()
    assert modes(model) == {training}
    with pytest.raises(RuntimeError), eval_mode(model):
        raise RuntimeError
    assert modes(model) == {training}


def test_one_part_that_is_left_in_training_mode_is_evaluated_too():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).eval()
    model[1].train()
    with eval_mode(model):
        assert modes(model) == {False}


def test_a_model_in_eval_mode_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """Scoring calls this for every text; setting the mode of each module costs what a short forward pass does."""
    model = build_model().eval()
    monkeypatch.setattr(nn.Module, "train", lambda *_: pytest.fail("a mode was set"))
    with eval_mode(model):
        assert modes(model) == {False}
