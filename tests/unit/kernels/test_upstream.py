"""What the private names of torch stand for, so that an upgrade which changes one is seen here."""

from typing import Any

import pytest
import torch
from torch import Tensor

from ai_finetuning.kernels._upstream import graph_is_kept
from ai_finetuning.kernels.autograd import Function


class Asks(Function):
    """The value itself; its backward pass writes down whether the graph is kept."""

    answers: list[bool] = []

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        Asks.answers.append(graph_is_kept())
        return gradient


@pytest.mark.parametrize("kept", [True, False])
def test_a_backward_pass_knows_whether_another_one_follows(kept: bool):
    value = torch.ones(2, requires_grad=True)
    Asks.apply(value).sum().backward(retain_graph=kept)
    assert Asks.answers.pop() is kept
