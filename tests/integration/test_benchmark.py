"""`make bench`, shortened: gate, both processes, result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.patience import patience

from ai_finetuning.kernels.products import rounded

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_quick_benchmark_measures_the_same_documents(tmp_path):
    """One counted step each: the gate opened, real tokens are the documents' own, and the result says what it was
    made with.
    """
    arguments = [
        "--quick",
        "--steps",
        "1",
        "--warmup",
        "1",
        "--threads",
        "1",
        "--work",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
    ]
    subprocess.run(
        [sys.executable, "benchmarks/training_step.py", *arguments], cwd=ROOT, check=True, timeout=patience(280)
    )
    (path,) = (tmp_path / "out").glob("*_quick.json")
    result = json.loads(path.read_text(encoding="utf-8"))
    documents = [json.loads(line) for line in next(tmp_path.rglob("documents.jsonl")).read_text("utf-8").splitlines()]
    cut = [min(512, len(item["ids"])) for item in documents]
    counted = {name: steps[-1] for name, steps in result["groups"][0].items()}
    # 64 steps, one counted: the middle one.
    assert counted["naive"]["tokens"] == sum(cut[8 * 32 : 8 * 33])
    assert counted["naive"]["slots"] == 8 * 512
    # Rows may be padded, so that similar ones have the same shapes.
    assert counted["ours"]["tokens"] <= counted["ours"]["slots"] <= rounded(result["documents"]["pack_tokens"])
    assert {obtained["precision"] for obtained in result["gate"]["ours"]} == {"bf16", "fp32"}
    assert result["versions"]["ours"]["torch"] == result["versions"]["naive"]["torch"]
    assert set(result["summary"]) == {"ours", "naive"}
