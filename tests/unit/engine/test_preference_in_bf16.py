"""Pairs on the fused blocks in bf16: answers that share their beginning beside answers that do not, and both beside fp32."""

from __future__ import annotations

import pytest
import torch
from tests.unit.engine.test_preference_loss import (
    CPU,
    SETTINGS,
    distance,
    gradients,
    loader_of,
    loss_of,
    model_of,
    noisy_reference,
    pairs,
    plain_step,
)

from ai_finetuning.data.answers import AnswerRows
from ai_finetuning.kernels.build import why_unavailable
from ai_finetuning.models.documents import select_forward_path, why_no_forks
from ai_finetuning.parallel.strategies.single import SingleDevice

REASON = why_unavailable(CPU)
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels here: {REASON}")


CASES = [("llama", name) for name in SETTINGS]
CASES += [(kind, "rpo") for kind in ("qwen2", "qwen3_tied", "gemma2", "stablelm")]


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_forks_err_no_more_than_bf16(kind: str, name: str, method: str):
    """Within what supervised training has there (tests/unit/models/test_documents.py)."""
    wrapped, inner = model_of(kind, method)
    examples = pairs(9)
    settings = SETTINGS[name]
    reference = noisy_reference(wrapped, examples)
    expected = plain_step(wrapped, examples, settings, reference)
    path, reason = select_forward_path(inner, CPU, autocast=torch.bfloat16, kernels="fused")
    assert path is not None, reason
    assert path.name == "fused", reason
    assert why_no_forks(path, autocast=torch.bfloat16) is None
    strategy, found = SingleDevice(CPU, autocast=torch.bfloat16), {}
    try:
        for shared in (True, False):
            loss = loss_of(path, settings)
            strategy.prepare(wrapped, loss)
            wrapped.zero_grad()
            group = loader_of(examples, AnswerRows(shared, reference)).micro_batches(0, 0, 3)
            total = strategy.forward_backward(group, len(examples))
            found[shared] = (float(total), gradients(wrapped))
    finally:
        path.close()
    errors = {}
    for shared, (total, gradient) in found.items():
        assert total == pytest.approx(expected[0], rel=2e-3)
        errors[shared], _ = distance(gradient, expected[1])
        assert errors[shared] < 3e-2
    assert errors[True] < 1.3 * errors[False]
    assert distance(found[True][1], found[False][1])[0] < 1.5e-2
