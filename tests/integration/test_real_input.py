"""The main job on real Japanese text: our own tokenizer and base from shared/data/prose, then 500 instruction rows, LoRA and full."""

from __future__ import annotations

import gzip
import json
from itertools import islice
from pathlib import Path

import pytest
from tests.support.commands import call

from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.training.tiny_base import write_random_llama

ROWS = 500


def rows_of(path: Path, count: int) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


@pytest.fixture(scope="module")
def base(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama pre-trained for a few seconds on Wikipedia and Aozora text, with a tokenizer trained on it."""
    folder = tmp_path_factory.mktemp("base")
    prose = shared / "data" / "prose"
    texts = [row["text"] for row in rows_of(prose / "wikipedia_annotated_corpus.jsonl.gz", 1500)]
    texts += [row["text"][:400] for row in rows_of(prose / "aozora_public_domain.jsonl.gz", 200)]
    write_random_llama(folder / "random", texts, vocabulary=3000, hidden=128, layers=2)
    with (folder / "prose.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    code = call(
        "train", f"model={folder / 'random'}", "method=full", f"data.train={folder / 'prose.jsonl'}", f"training.output_dir={folder / 'base'}",
        "max_steps=80", "learning_rate=2e-3", "batch_size=8", "gradient_accumulation_steps=1", "packing=true", "max_length=256", "progress=false",
    )  # fmt: skip
    assert code == 0
    return folder / "base"


@pytest.mark.parametrize(("method", "rate", "drop"), [("lora", "3e-3", 0.05), ("full", "1e-3", 0.4)])
def test_the_main_job_on_real_rows(shared: Path, base: Path, tmp_path: Path, method: str, rate: str, drop: float):
    rows = rows_of(shared / "data" / "instruct" / "dolly_ja_train.jsonl.gz", ROWS)
    data = tmp_path / "dolly.jsonl.gz"
    with gzip.open(data, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    code = call(
        "train", f"model={base}", f"method={method}", f"data.train={data}", "data.eval=0.1", f"training.output_dir={tmp_path / 'out'}",
        f"learning_rate={rate}", "batch_size=8", "gradient_accumulation_steps=1", "num_epochs=2", "on_long=drop", "eval_steps=50", "progress=false",
    )  # fmt: skip
    assert code == 0
    scores = [row for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row]
    assert scores[-1]["eval_loss"] < scores[0]["eval_loss"] - drop, scores
    assert scores[-1]["eval_bits_per_character"] < scores[0]["eval_bits_per_character"]
    assert call("generate", str(tmp_path / "out"), "日本の首都はどこですか？", "--max-new-tokens", "16") == 0
