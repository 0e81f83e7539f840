"""What a plan tells of a GPU's memory against what its allocator held: `make test-gpu` where there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.support.commands import call, write_run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("changes", [[], ["data.packing=true"], ["training.gradient_checkpointing=true"]])
def test_the_second_step_holds_what_was_simulated(tiny_model_dir: Path, tmp_path: Path, logged, changes):
    """Never compared yet: no GPU has been at hand."""
    run = write_run(tmp_path, tiny_model_dir)
    assert call("train", str(run), "training.schedule.max_steps=3", *changes, "--plan", "exact") == 0
    (line,) = set(re.findall(r"memory, planned and real \(step 2\): .*", logged()))
    assert all(abs(float(off)) < 5 for off in re.findall(r"\(([+-][\d.]+)%\)", line)), line
