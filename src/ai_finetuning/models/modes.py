"""The mode of a model for a moment."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards the model is in the mode that it was in. Gradients stay as they are: for generators, which
    would leave `no_grad` on in the code that reads them.
    """
    was_training = model.training
    if not any(module.training for module in model.modules()):
        yield  # setting a mode visits every module twice, which costs what a short forward pass does
        return
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards the model is in the mode that it was in."""
    with eval_mode(model), torch.no_grad():
        yield
