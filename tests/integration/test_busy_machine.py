"""Beside other processes a run takes longer and gives the same bytes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.commands import spawn, write_run

BUSY = 10


@contextlib.contextmanager
def busy_processes() -> Iterator[None]:
    """Ten that never rest."""
    began = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    try:
        yield
    finally:
        for process in began:
            process.kill()
            process.wait()


@pytest.mark.slow  # starting Python beside ten busy processes takes a minute
@pytest.mark.parametrize("kernels", ["auto", "portable"])
def test_the_same_seed_gives_the_same_bytes_beside_ten_busy_processes(
    tiny_model_dir: Path, tmp_path: Path, kernels: str
):
    weights = []
    for name, beside in (("quiet", contextlib.nullcontext()), ("busy", busy_processes())):
        config = write_run(tmp_path / name, tiny_model_dir, num_epochs=1, eval_steps=100)
        with beside:
            code, output = spawn(
                "train", str(config), f"training.runtime.kernels={kernels}", OMP_NUM_THREADS="2", timeout=600
            )
        assert code == 0, output
        weights.append({path.name: path.read_bytes() for path in (tmp_path / name / "out").glob("*.safetensors")})
    assert weights[0]
    assert weights[0] == weights[1]
