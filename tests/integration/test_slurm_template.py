"""examples/slurm/train.sbatch in bash, with stand-ins for SLURM's own commands."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.support.patience import patience, until

TEMPLATE = Path(__file__).resolve().parents[2] / "examples" / "slurm" / "train.sbatch"
# srun runs until it is told to stop, as torchrun does until its workers have saved; scancel tells it.
COMMANDS = {
    "srun": (
        'echo "$@" > asked; env | grep -E "^(TORCH|OMP)" > variables; echo $$ > pid; trap "echo saved > saved; exit '
        '1" TERM; $HANDOVER; while :; do sleep 0.05; done'
    ),
    "scontrol": 'case "$1" in show) printf "node7\\nnode8\\n";; requeue) echo "$2" > requeued;; esac',
    "scancel": 'echo "$@" > cancelled; kill -TERM "$(cat pid)"',
}


def start(folder: Path, handover: str = ":") -> subprocess.Popen:
    for name, body in COMMANDS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "4321",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_PER_NODE": "8",
        "SLURM_CPUS_PER_TASK": "32",
        "SLURM_JOB_NODELIST": "node[7-8]",
    }
    variables = os.environ | slurm | {"PATH": f"{folder}:{os.environ['PATH']}", "HANDOVER": handover}
    return subprocess.Popen(["bash", str(TEMPLATE), "run.yaml", "method=lora"], cwd=folder, env=variables)


def wait_for(file: Path) -> str:
    until(lambda: file.is_file() and bool(file.read_text(encoding="utf-8")), 60, f"{file.name} is written")
    return file.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_sigterm_reaches_every_torchrun_and_the_job_is_queued_again(tmp_path: Path):
    job = start(tmp_path)
    wait_for(tmp_path / "pid")
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=patience(60)) == 75
    assert wait_for(tmp_path / "cancelled").split() == ["--signal=TERM", "4321"]
    assert (tmp_path / "saved").is_file()
    assert wait_for(tmp_path / "requeued").strip() == "4321"
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert "--rdzv-backend=c10d --rdzv-endpoint=node7:24321" in asked
    assert "--nnodes=2 --nproc-per-node=8" in asked
    assert asked.split()[-5:] == ["ai_finetuning", "train", "run.yaml", "method=lora", "--resume"]
    variables = (tmp_path / "variables").read_text(encoding="utf-8")
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in variables
    assert "OMP_NUM_THREADS=4" in variables


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_a_failed_run_ends_the_job_with_its_code(tmp_path: Path):
    job = start(tmp_path, handover="exit 78")
    assert job.wait(timeout=patience(60)) == 78
    assert not (tmp_path / "requeued").exists()
