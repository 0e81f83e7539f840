"""Beside other processes a run takes longer and gives the same bytes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from benchmarks.loaded import busy_processes
from tests.support.commands import spawn, write_run

BUSY = 10


@pytest.mark.slow  # starting Python beside ten busy processes takes a minute
@pytest.mark.parametrize("kernels", ["auto", "portable"])
def test_the_same_seed_gives_the_same_bytes_beside_ten_busy_processes(
    tiny_model_dir: Path, tmp_path: Path, kernels: str
):
    weights = []
    for name, beside in (("quiet", contextlib.nullcontext()), ("busy", busy_processes(BUSY))):
        config = write_run(tmp_path / name, tiny_model_dir, num_epochs=1, eval_steps=100)
        with beside:
            code, output = spawn(
                "train", str(config), f"training.runtime.kernels={kernels}", OMP_NUM_THREADS="2", timeout=600
            )
        assert code == 0, output
        weights.append({path.name: path.read_bytes() for path in (tmp_path / name / "out").glob("*.safetensors")})
    assert weights[0]
    assert weights[0] == weights[1]
