"""What a checkpoint says that its run decided is taken over only where it is of the right kind."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from ai_finetuning.errors import CheckpointError, ConfigError, Reason
from ai_finetuning.execution.derived import Derived, kernels_of, taken_over, threads_of, validate_kernels
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
        ("threads", 0),
        ("threads", "2"),
        ("replay", "whole"),
    ],
)
def test_values_of_another_kind_are_refused(name: str, value: Any):
    with pytest.raises(CheckpointError, match="cannot be read"):
        taken_over(ResumePoint(derived=GOOD | {name: value}))


@pytest.mark.parametrize(
    ("asked", "taken", "resumed", "fp32", "expected"),
    [
        ("auto", {}, False, True, "auto"),
        ("auto", {"kernels": "portable"}, True, True, "portable"),
        ("auto", {"kernels": "plain"}, True, False, "plain"),
        ("auto", {"kernels": "fused"}, True, True, "auto"),
        ("auto", {"precision": "fp32"}, True, True, "portable"),  # older than the fused blocks in fp32
        ("auto", {"precision": "bf16"}, True, False, "auto"),
        ("plain", {"kernels": "portable"}, True, True, "plain"),
    ],
)
def test_a_resumed_run_computes_as_it_began(
    asked: str, taken: dict[str, Any], resumed: bool, fp32: bool, expected: str
):
    assert kernels_of(asked, taken, resumed=resumed, fp32=fp32) == expected


def test_a_run_that_cannot_go_on_with_its_fused_blocks_is_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler.*training.runtime.kernels=portable") as refused:
        validate_kernels("auto", {"kernels": "fused"}, "portable", Reason("", "no C++ compiler"))
    assert refused.value.exit_code == 78
    validate_kernels("portable", {"kernels": "fused"}, "portable", None)
    validate_kernels("auto", {"kernels": "fused"}, "fused", None)
    validate_kernels("auto", {}, "portable", None)


@pytest.mark.parametrize(
    ("had", "now", "chosen", "expected"),
    [
        (None, 4, False, 4),  # a new run, or one of a version that did not write it down
        (2, 4, False, 2),
        (4, 2, False, 4),
        (2, 1, True, 1),
        (8, 8, True, 8),
    ],
)
def test_a_resumed_run_has_its_threads(had: int | None, now: int, chosen: bool, expected: int):
    assert threads_of(had, now, 4, chosen=chosen) == expected


def test_threads_without_cores_are_refused_with_the_way_out():
    with pytest.raises(ConfigError, match=r"began with 8 threads, and 4 cores .*OMP_NUM_THREADS=8 .*OMP_NUM_THREADS=4"):
        threads_of(8, 4, 4, chosen=False)
