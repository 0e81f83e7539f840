"""Settings that people of other tools look for, in real runs: warm-up as a share, saves and evaluations an epoch, the
first rows of a source, checkpoints without an optimizer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.commands import ROWS, call
from tests.support.models import build_tokenizer
from tests.support.runs import losses, weights_digest

from ai_finetuning.config.data import DataConfig
from ai_finetuning.data.prepare import prepare
from ai_finetuning.data.text_dataset import TextDataset
from ai_finetuning.engine.checkpoint.store import verify, weights_only
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.schedule import warmup_of_ratio


def write(folder: Path, model: Path, **training: Any) -> str:
    """A YAML of 24 steps, 6 an epoch, whose keys stand flat."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS), encoding="utf-8")
    values = {
        "model": str(model),
        "train": str(rows),
        "max_length": 64,
        "learning_rate": 5e-3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 4,
        "output_dir": str(folder / "out"),
        "fp16": False,
        "progress": False,
        "save_total_limit": 50,
        "r": 4,
        "lora_dropout": 0.1,
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(values | training, allow_unicode=True), encoding="utf-8")
    return str(path)


def run_json(folder: Path) -> dict[str, Any]:
    obtained: dict[str, Any] = json.loads((folder / "out" / "run.json").read_text(encoding="utf-8"))
    return obtained


def saved(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in (folder / "out" / "checkpoints").glob("checkpoint-*"))


# --- warm-up


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"),
    [(0.1, 24, 3), (0.07, 100, 7), (0.03, 100, 3), (0.1, 1, 0), (0.1, 3, 1), (0.0, 9, 0), (0.99, 10, 9)],
)
def test_a_ratio_is_rounded_up_and_leaves_a_step(ratio: float, steps: int, expected: int):
    assert warmup_of_ratio(ratio, steps) == expected


def test_warmup_ratio_is_derived_once_and_resumed(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    run = write(tmp_path, tiny_model_dir, warmup_ratio=0.2)
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@7")
        assert call("train", run) == 75
    assert run_json(tmp_path)["derived"]["warmup_steps"] == 5
    assert "# derived: training.warmup_steps: 5" in (tmp_path / "out" / "config.yaml").read_text(encoding="utf-8")
    rates = [row["learning_rate"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert rates[:6] == pytest.approx([5e-3 * (step + 1) / 6 for step in range(5)] + [5e-3])
    assert call("train", run, "--resume", "warmup_ratio=0.5") == 78
    assert "warmup_steps: 5 -> 12" in logged()
    assert call("train", run, "--resume", "--allow-changed", "max_steps=20") == 0  # as the run began, not a share of 20
    assert run_json(tmp_path)["derived"]["warmup_steps"] == 5


@pytest.mark.parametrize(
    "both",
    [
        ("warmup_ratio=0.1", "warmup_steps=2"),
        ("saves_per_epoch=1", "save_steps=3"),
        ("evals_per_epoch=1", "eval_steps=3"),
    ],
)
def test_two_ways_to_say_one_thing_are_refused(
    both: tuple[str, str], tmp_path: Path, tiny_model_dir: Path, logged: Any
):
    assert call("train", write(tmp_path, tiny_model_dir), *both) == 78
    text = logged()
    assert "give only one of them" in text
    assert all(f"{name} is {value}" in text for name, value in (item.split("=") for item in both))


# --- an epoch's saves and evaluations


def test_so_many_saves_and_evaluations_an_epoch(tmp_path: Path, tiny_model_dir: Path):
    """Of 6 steps: 4 saves behind steps 2, 3, 5 and 6, and 2 evaluations behind 3 and 6."""
    run = write(tmp_path, tiny_model_dir, saves_per_epoch=4, evals_per_epoch=2, eval=str(tmp_path / "rows.jsonl"))
    assert call("train", run, "num_epochs=2") == 0
    assert saved(tmp_path) == [2, 3, 5, 6, 8, 9, 11, 12]
    history = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [row["step"] for row in history if "eval_loss" in row] == [0, 3, 6, 9, 12]


def test_more_saves_than_steps_are_one_a_step(tmp_path: Path, tiny_model_dir: Path):
    assert call("train", write(tmp_path, tiny_model_dir, saves_per_epoch=9), "num_epochs=1") == 0
    assert saved(tmp_path) == [1, 2, 3, 4, 5, 6]


# --- the first rows


def test_the_first_rows_of_each_source(tmp_path: Path):
    tokenizer = build_tokenizer()
    for name, count in (("a", 5), ("b", 2)):
        rows = ({"text": f"{name}の{number}"} for number in range(count))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]

    def texts(train: Any, **changes: Any) -> tuple[list[str], list[str], list[str]]:
        data = prepare(train, changes.pop("eval_data", None), tokenizer, DataConfig(max_samples=3, cache=False), seed=0)
        return (
            [tokenizer.decode(item.input_ids, skip_special_tokens=True) for item in data.train],
            [tokenizer.decode(item.input_ids, skip_special_tokens=True) for item in data.eval_data],
            data.lines,
        )

    train, _, lines = texts(paths)
    assert train == ["aの0", "aの1", "aの2", "bの0", "bの1"]
    assert [line for line in lines if "left aside" in line] == [
        "max_samples is 3: the first 3 rows are used, 2 rows left aside"
    ]
    train, evaluation, _ = texts(paths[0], eval_data=0.34)
    assert sorted(train + evaluation) == ["aの0", "aの1", "aの2"]  # the split comes after
    assert len(evaluation) == 1
    assert len(texts(paths[1], eval_data=paths[0])[1]) == 5  # evaluation data is read whole
    assert texts([f"文{number}" for number in range(4)])[0] == ["文0", "文1", "文2"]
    assert len(texts(TextDataset([f"文{number}" for number in range(4)], tokenizer))[0]) == 3


# --- weights only


def test_checkpoints_of_weights_only_are_smaller_and_refuse_to_resume(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    run = write(tmp_path, tiny_model_dir, save_only_model=True, save_steps=3, eval=0.2, eval_steps=3, load_best=True)
    assert call("train", run) == 0
    folders = [tmp_path / "out" / "checkpoints" / f"checkpoint-{step}" for step in saved(tmp_path)]
    assert folders
    for folder in folders:
        assert verify(folder) == []
        assert weights_only(folder)
        assert not list(folder.glob("optimizer*"))
        assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["weights_only"] is True
    assert call("train", run, f"resume={folders[-1]}", f"output_dir={tmp_path / 'other'}") == 65
    text = logged()
    assert "holds weights only" in text
    assert "--restart" in text


def test_what_a_signal_saves_is_whole(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    """The run goes on from there to the bits of one that never stopped; and from there again, past newer weights."""
    plain = tmp_path / "plain"
    plain.mkdir()
    assert call("train", write(plain, tiny_model_dir)) == 0
    run = write(tmp_path, tiny_model_dir, save_only_model=True, save_steps=5)
    for step in (7, 12):
        with monkeypatch.context() as patch:
            patch.setenv("AIFT_FAULT", f"step:term@{step}")
            assert call("train", run, "--resume") == 75
    whole = [
        step for step in saved(tmp_path) if not weights_only(tmp_path / "out" / "checkpoints" / f"checkpoint-{step}")
    ]
    assert whole == [7, 12]
    assert call("train", run, "--resume") == 0
    assert losses(tmp_path / "out") == losses(plain / "out")
    assert weights_digest(tmp_path / "out") == weights_digest(plain / "out")


def test_a_run_with_weights_alone_says_so(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, logged: Any
):
    """As a kill leaves it, before any signal saved something whole."""
    run = write(tmp_path, tiny_model_dir, save_only_model=True, save_steps=3)
    with monkeypatch.context() as patch:
        patch.setenv("AIFT_FAULT", "step:term@7")
        assert call("train", run) == 75
    shutil.rmtree(tmp_path / "out" / "checkpoints" / "checkpoint-7")
    assert call("train", run, "--resume") == 65
    assert "holds weights only" in logged()
    assert call("train", run, "--resume", "--restart") == 0


def test_weights_only_and_restarts_are_refused(tmp_path: Path, tiny_model_dir: Path, logged: Any):
    assert call("train", write(tmp_path, tiny_model_dir, save_only_model=True), "max_restarts=1") == 78
    assert "parallel.max_restarts is 1" in logged()
