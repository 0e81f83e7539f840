"""What a plan tells of a GPU's memory against what its allocator held: `make test-gpu` where there is one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tests.support.commands import call, write_run

from ai_finetuning.runs.folder import read_run

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


def test_a_run_takes_the_cut_that_its_plan_shows(tiny_model_dir: Path, tmp_path: Path, logged):
    """With nothing of it set: the same rows a step, and a resumed run would take the same cut again."""
    run = write_run(tmp_path, tiny_model_dir)
    text = run.read_text(encoding="utf-8")
    names = "batch_size|gradient_accumulation_steps|gradient_checkpointing"
    run.write_text(re.sub(rf"\n  ({names}): .*", "", text), encoding="utf-8")
    assert call("train", str(run), "training.schedule.max_steps=2") == 0
    (size, count, checkpointing) = re.findall(r"chosen cut: batch (\d+) x (\d+), (no )?checkpointing", logged())[0]
    derived = read_run(tmp_path / "out")["derived"]
    assert (derived["batch_size"], derived["gradient_accumulation_steps"]) == (int(size), int(count))
    assert derived["batch_size"] * derived["gradient_accumulation_steps"] == 16
    assert derived["gradient_checkpointing"] is (checkpointing == "")
