"""The gate lets the training step through and stops one that computes something else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from benchmarks.corpus import documents
from benchmarks.gate import Findings, GateError, distance, gradients, leak, neighbour_batches, reference
from tests.support.models import build_model

from ai_finetuning.engine.loss import make_loss
from ai_finetuning.parallel.strategies.single import SingleDevice

FINE = Findings(precision="bf16", loss=1e-5, gradient=9e-3, worst=2e-2, worst_name="w", leak=0.0)


@pytest.fixture(scope="module")
def model():
    return build_model().train()


@pytest.fixture(scope="module")
def corpus():
    return documents(4, vocabulary=400)[:2]


def forward_backward(model, loss):
    strategy = SingleDevice(torch.device("cpu"))
    strategy.prepare(model, loss)
    return lambda batch: float(strategy.forward_backward([batch], 1.0))


def test_isolated_documents_leak_nothing(model, corpus):
    step = forward_backward(model, make_loss(logits_to_keep=True))
    assert leak(model, step, neighbour_batches(corpus, 400)) <= 1e-6


def test_attention_across_documents_is_refused(model, corpus):
    """An all-ones mask lets packed documents see each other without an error; the gate sees it."""
    fair = make_loss(logits_to_keep=True)

    def leaking(module, batch):
        return fair(module, replace(batch, attention_mask=torch.ones_like(batch.input_ids)))

    obtained = leak(model, forward_backward(model, leaking), neighbour_batches(corpus, 400))
    with pytest.raises(GateError, match="leak"):
        replace(FINE, leak=obtained).refuse()


def test_gradients_of_another_loss_are_refused(model, corpus):
    """A step that trains on prompts too is stopped, although its loss is near by."""
    _, expected = reference(model, corpus)
    _, other = reference(model, [replace(item, prompt=1) for item in corpus])
    with pytest.raises(GateError, match="gradient"):
        replace(FINE, gradient=distance(other, expected)[0]).refuse()


def test_a_missing_gradient_is_refused(model, corpus):
    _, expected = reference(model, corpus)
    with pytest.raises(GateError, match="one side"):
        distance({name: value for name, value in expected.items() if "q_proj" not in name}, expected)
    assert distance(gradients(model), expected)[0] == 0


@pytest.mark.parametrize("change", [{"loss": 2e-4}, {"gradient": 3e-2}, {"gradient": float("nan")}, {"leak": 1e-3}])
def test_each_limit_shuts_the_gate(change):
    FINE.refuse()
    with pytest.raises(GateError):
        replace(FINE, **change).refuse()
