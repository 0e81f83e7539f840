"""What a checkpoint says that its run decided is taken over only where it is of the right kind."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ai_finetuning.errors import CheckpointError
from ai_finetuning.execution.derived import Derived, taken_over
from ai_finetuning.execution.resume import ResumePoint

GOOD = asdict(Derived("fp32", False, 3, True, 4, 2, dtype="float32", target_modules=["q_proj"], warmup_ratio=0.1))


def test_values_come_back_as_they_were():
    assert taken_over(ResumePoint(derived=GOOD)) == GOOD
    assert taken_over(ResumePoint(derived={"precision": "bf16", "warmup_steps": 1})) == {
        "precision": "bf16",
        "warmup_steps": 1,
    }
    assert taken_over(None) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_steps", {}),
        ("warmup_steps", "3"),
        ("target_modules", [True]),
        ("target_modules", [["q_proj"]]),
        ("gradient_checkpointing", "no"),
        ("chat_template", 5),
        ("eval_steps", [1]),
        ("warmup_ratio", "a"),
        ("dtype", "save"),
        ("precision", "fp64"),
        ("split", "none"),
        ("batch_size", 0),
        ("batch_size", "4"),
        ("gradient_accumulation_steps", -8),
        ("strategy", "tensor"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, value: Any):
    with pytest.raises(CheckpointError, match="cannot be read"):
        taken_over(ResumePoint(derived=GOOD | {name: value}))
