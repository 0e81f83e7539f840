"""`aift models --fits --gpu`: the ranking by the formula, for GPUs that are not here, in a moment."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys

import pytest
from tests.support.commands import call

from ai_finetuning.models.catalog import rows
from ai_finetuning.planner import memory
from ai_finetuning.planner.fits import DIVIDED_BYTES, need_gib

LLAMA = "elyza/Llama-3-ELYZA-JP-8B"


def test_what_devices_share_is_what_the_formula_counts():
    work = memory.Workload(1, None, frozen_bytes=2, tokens=1, compute_bytes=2, full=True)
    weight = memory.weight_bytes(work, 1, 0) + memory.copy_bytes(work, 1) + memory.state_bytes(work, 1)
    assert {"infer": 2, "lora": 2, "qlora": memory.KBIT_BYTES[4], "full": weight} == DIVIDED_BYTES


@pytest.mark.parametrize("use", DIVIDED_BYTES)
def test_a_device_of_several_needs_less_and_never_less_than_its_share(use: str):
    row = rows()[LLAMA]
    one, two, eight = (need_gib(row, use, devices) for devices in (1, 2, 8))
    assert one == row.memory_gib[use]
    assert one > two > eight
    assert two >= one / 2
    assert eight >= one / 8


def test_the_ranking_is_for_the_named_gpus(capsys):
    assert call("models", "--fits", "--gpu", "a5000x2", "13b") == 0
    two = capsys.readouterr().out
    assert call("models", "--fits", "--gpu", "a5000", "13b") == 0
    one = capsys.readouterr().out
    assert "18.9 of the 23.6 GiB" in two
    assert "Swallow-13b" in two.replace("\n", "")
    assert "No model fits" in one  # LoRA of 13B wants two of them
    assert call("models", "--fits", "--gpu", "a5000", "--method", "qlora", "13b") == 0
    assert "Swallow-13b" in capsys.readouterr().out


def test_one_model_is_told_for_each_use(capsys):
    assert call("models", LLAMA, "--gpu", "4090x2") == 0
    line, how = capsys.readouterr().out.splitlines()[-2:]
    assert "By a formula" in how
    assert "4090 x 2" in line
    assert "QLoRA" in line
    assert "(fits)" in line
    assert "(too large)" in line  # full fine-tuning


def test_a_model_that_is_here_is_simulated(capsys):
    assert call("models", "embedded:kotoha-tiny", "--gpu", "4090") == 0
    line, how = capsys.readouterr().out.splitlines()[-2:]
    assert "Training is simulated" in how
    told = {use: float(size) for use, size in re.findall(r"(\w+|full fine-tuning) (\d+\.\d) GiB", line)}
    assert 0 < told["LoRA"] < rows()["embedded:kotoha-tiny"].memory_gib["lora"]  # the formula has 0.6 GiB for libraries


def test_the_whole_table_takes_less_than_two_seconds_of_a_processor():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    program = (
        "import sys\nfrom ai_finetuning.apps.cli.main import run\ncode = run(sys.argv[1:])\n"
        "print('heavy:', sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "models", "--fits", "--gpu", "4090x2"],
        env=os.environ | {"AIFT_LANG": "en", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "heavy: []" in done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2
