"""The main job on real Japanese text: the model that ships, 500 instruction rows, LoRA and full."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from tests.support.commands import call

from ai_finetuning.engine.metrics import read_metrics

ROWS = 500


def rows_of(path: Path, count: int) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


@pytest.mark.parametrize(("method", "rate", "drop"), [("lora", "3e-3", 0.05), ("full", "1e-3", 0.4)])
def test_the_main_job_on_real_rows(shared: Path, kotoha: str, tmp_path: Path, method: str, rate: str, drop: float):
    rows = rows_of(shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz", ROWS)
    data = tmp_path / "dolly.jsonl.gz"
    with gzip.open(data, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    code = call(
        "train",
        f"model={kotoha}",
        f"method={method}",
        f"data.train={data}",
        "data.eval=0.1",
        "training.evaluation.verdict=false",
        f"training.output_dir={tmp_path / 'out'}",
        f"learning_rate={rate}",
        "batch_size=8",
        "gradient_accumulation_steps=1",
        "num_epochs=2",
        "on_long=drop",
        "eval_steps=50",
        "progress=false",
    )
    assert code == 0
    scores = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row]
    assert scores[-1]["eval_loss"] < scores[0]["eval_loss"] - drop, scores
    assert scores[-1]["eval_bits_per_character"] < scores[0]["eval_bits_per_character"]
    assert call("generate", str(tmp_path / "out"), "日本の首都はどこですか？", "--max-new-tokens", "16") == 0
