"""Two processes: the same old rows among the new ones as in one, and the same best weights, under every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.ranks import run_ranks
from tests.support.runs import ROWS, losses, train_full, train_lora

from ai_finetuning import DataConfig
from ai_finetuning.config.data import ReplayConfig
from ai_finetuning.config.parallel import ParallelConfig

CASES = {
    "ddp": "lora",
    "fsdp": "full",
    "tensor": "lora",
    "pipeline": "full",
    "ddp distill": "lora",
}


def train(rank: int, method: str, case: str, model: Path, folder: Path, alone: bool = False) -> None:
    """LoRA learns the rows that it is scored on and returns its last weights; all weights train at a rate that makes
    the evaluation worse, and the best ones come back.
    """
    old = folder.parent / "old.jsonl"
    run = train_full if method == "full" else train_lora
    extra: dict[str, Any] = {} if method == "full" else {"lora": {"lora_dropout": 0.0}}
    strategy, _, distill = case.partition(" ")
    if not alone:
        extra["parallel"] = ParallelConfig(strategy=strategy)
    run(
        model,
        folder,
        rows=ROWS[:12],
        evaluate=["Hello, how are you?"] if method == "full" else ROWS[:4],
        data=DataConfig(max_length=64, replay=ReplayConfig(str(old), 0.25, distill=3.0 if distill else None)),
        eval_steps=2,
        save_steps=1000,
        learning_rate=0.01,
        checkpoint={"load_best": method == "full"},
        **extra,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_near(folder: Path, alone: Path) -> None:
    obtained, expected = weights(folder), weights(alone)
    assert obtained.keys() == expected.keys()
    assert obtained
    assert max(float((obtained[name] - expected[name]).abs().max()) for name in expected) < 2e-4


@pytest.mark.parametrize(
    "strategy",
    [strategy if strategy == "ddp" else pytest.param(strategy, marks=pytest.mark.slow) for strategy in CASES],
)
def test_old_rows_and_best_weights_are_those_of_one_process(strategy: str, tiny_model_dir: Path, tmp_path: Path):
    method = CASES[strategy]
    rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS[12:])
    (tmp_path / "old.jsonl").write_text(rows, encoding="utf-8")
    train(0, method, strategy, tiny_model_dir, tmp_path / "alone", alone=True)
    run_ranks(2, train, method, strategy, tiny_model_dir, tmp_path / "out", folder=tmp_path)
    obtained, expected = ([float.fromhex(loss) for loss in losses(tmp_path / name)] for name in ("out", "alone"))
    assert obtained == pytest.approx(expected, abs=1e-4)
    notes = [json.loads((tmp_path / name / "run.json").read_text(encoding="utf-8")) for name in ("out", "alone")]
    assert notes[0]["result"]["plan"]["replay"] == notes[1]["result"]["plan"]["replay"]
    best = [note["best"] for note in notes]
    assert (best[0]["step"], best[0]["folder"]) == (best[1]["step"], "checkpoints/best")
    places = [tmp_path / name / "checkpoints" / "best" for name in ("out", "alone")]
    assert_near(places[0], places[1])
    assert {path.name for path in places[0].iterdir()} == {path.name for path in places[1].iterdir()}
    assert_near(tmp_path / "out", tmp_path / "alone")
    if method == "full":
        assert best[0]["step"] < 8
        assert_near(tmp_path / "out", places[0])
