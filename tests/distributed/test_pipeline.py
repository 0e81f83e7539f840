"""Pipelines on two and four processes against one fp32 process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ai_finetuning.parallel.mesh import Sizes, build_mesh
from ai_finetuning.parallel.pipeline import SCHEDULES, Pipeline
from tests.distributed.test_data_parallel import assert_equal
from tests.support.parity import CPU, Case, differences


def pipeline(schedule: str = "1F1B", *, dp: int = 1, sharded: bool = False) -> Any:
    return lambda case: Pipeline(
        CPU, build_mesh(Sizes(pp=2, dp=dp), "cpu"), schedule=schedule, sharded=sharded
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_does_the_step_of_one_process(schedule: str, tmp_path: Path):
    assert_equal(differences(2, [Case("llama", layers=4)], pipeline(schedule), tmp_path))
