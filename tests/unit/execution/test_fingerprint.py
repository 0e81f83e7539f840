"""What processes of one run must have in common."""

from __future__ import annotations

import pytest
import torch
from tests.support.models import build_model

from ai_finetuning.errors import ModelError
from ai_finetuning.execution.fingerprint import validate_same_weights, weights_mark


def test_processes_that_read_other_weights_are_refused():
    """Replicas do not send frozen weights to each other: another file on one node would train something else."""
    one, same, other = build_model("llama"), build_model("llama"), build_model("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1e-3)
    marks = [weights_mark(model) for model in (one, same, other)]
    validate_same_weights(marks[:2])
    with pytest.raises(ModelError, match="process 2"):
        validate_same_weights(marks)
