"""The benchmark of preference training, shortened: gate, our process, result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.patience import patience

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_short_benchmark_measures_the_pairs_that_it_wrote(tmp_path: Path):
    """The gate opened, a step is worth the tokens of its own pairs, and of each prompt one is computed, and hardly any padding."""
    options = ["--model", "tiny", "--variants", "ours", "--steps", "1", "--warmup", "1", "--threads", "1"]
    # Without TRL: our own variant needs no environment of peers.
    places = ["--work", str(tmp_path), "--out", str(tmp_path / "out"), "--peers", str(tmp_path / "no peers")]
    subprocess.run(
        [sys.executable, "benchmarks/preference.py", *options, *places], cwd=ROOT, check=True, timeout=patience(280)
    )
    (path,) = (tmp_path / "out").glob("preference_*.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    made = [
        json.loads(line) for line in next(tmp_path.glob("*-dolly/pairs/pairs.jsonl")).read_text("utf-8").splitlines()
    ]
    steps = result["steps"]["ours"]
    assert sum(step["tokens"] for step in steps) == sum(
        2 * len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in made
    )
    computed = sum(len(pair["prompt"]) + len(pair["chosen"]) + len(pair["rejected"]) for pair in made)
    # Rows of two pairs may be padded, so that similar ones have the same shapes.
    assert computed <= sum(step["slots"] for step in steps) < computed + 32 * len(made) / 2
    assert {found["precision"] for found in result["gate"]["ours"]} == {"bf16", "fp32"}
    assert result["references"]["ours"]["cpu"] > 0
