"""Whole runs over pairs of answers and marked ones: what they keep, resume from, and refuse."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.support.runs import losses, training, weights_digest
from tests.unit.engine.test_preference_loss import marked, pairs

from ai_finetuning import DataConfig, JapaneseModel, LoRAConfig, ScheduleConfig
from ai_finetuning.config.preference import PreferenceConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.config.run_folder import BEST, BEST_NOTE, CHECKPOINTS, METRICS
from ai_finetuning.data.text_dataset import TextDataset
from ai_finetuning.engine import references
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import CheckpointError, ConfigError, DataError
from ai_finetuning.execution.execute import execute
from ai_finetuning.execution.pilot import try_steps
from ai_finetuning.execution.request import TrainRequest
from ai_finetuning.execution.resolve import resolve
from ai_finetuning.parallel.strategies.single import SingleDevice
from ai_finetuning.planner.speed import PILOT, Speed

KEPT = Path(CHECKPOINTS) / "references.safetensors"


def request_of(model_dir: Path, folder: Path, rows: Any, evaluated: Any = None, **given: Any) -> TrainRequest:
    full, resume = given.pop("full", False), given.pop("resume", None)
    settings = {"objective": "preference"} | given.pop("settings", {})
    checkpoint = {} if resume is None else {"resume_from_checkpoint": str(resume)}
    values = {"eval_steps": 2, "save_steps": 2, "learning_rate": 1e-3 if full else 5e-3}
    config = RunConfig(
        method="full" if full else "lora",
        training=training(folder, checkpoint=checkpoint, **values | given),
        data=DataConfig(max_length=64),
        **({} if full else {"lora": LoRAConfig(r=4, lora_alpha=8, lora_dropout=0.1)}),
        **settings,
    )
    sets = [TextDataset.of(part, max_length=64, pad_token_id=0) if part else None for part in (rows, evaluated)]
    return TrainRequest(JapaneseModel(str(model_dir), torch_dtype=torch.float32), config, sets[0], sets[1])


@pytest.mark.parametrize("full", [False, True], ids=["lora", "full"])
def test_a_resumed_run_has_the_bits_of_one_that_never_stopped(
    full: bool, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the middle of an epoch. Its references are those of before step 1, which trained weights cannot tell any more."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    rows, evaluated = pairs(22), pairs(3, seed=9)
    whole = tmp_path / "whole"
    execute(request_of(tiny_model_dir, whole, rows, evaluated, full=full))
    steps = read_metrics(whole / METRICS)
    first = next(row for row in steps if row["step"] == 1)
    assert abs(first["rewards/margins"]) < 1e-4
    before = next(row for row in steps if row["step"] == 0)
    assert before["eval_rewards/margins"] == before["eval_rewards/accuracies"] == 0.0
    assert before["eval_loss"] == pytest.approx(0.693147, rel=1e-5)
    assert "eval_perplexity" not in before
    last = [row for row in steps if "loss" in row][-1]
    assert last["loss"] < first["loss"]
    kept = load_file(whole / KEPT)
    assert {name: list(part.shape) for name, part in kept.items()} == {"train": [22, 2, 2], "eval": [3, 2, 2]}

    checkpoint = whole / "checkpoints" / "checkpoint-10"
    rest = tmp_path / "rest"
    execute(request_of(tiny_model_dir, rest, rows, evaluated, full=full, resume=checkpoint))
    assert losses(rest) == losses(whole)[10:]
    assert weights_digest(rest) == weights_digest(whole)
    assert torch.equal(load_file(rest / KEPT)["train"], kept["train"])

    shutil.copy(whole / KEPT, tmp_path / "aside")
    damaged = bytearray((whole / KEPT).read_bytes())
    damaged[-2] ^= 0x40  # one number of the last pair, which stays a number
    (whole / KEPT).write_bytes(damaged)
    with pytest.raises(CheckpointError, match="is damaged"):
        execute(request_of(tiny_model_dir, tmp_path / "none", rows, evaluated, full=full, resume=checkpoint))
    (whole / KEPT).unlink()
    with pytest.raises(CheckpointError, match=r"is not there.*training\.output_dir"):
        execute(request_of(tiny_model_dir, tmp_path / "none", rows, evaluated, full=full, resume=checkpoint))
    if full:
        return
    # What is in the cache is the same: the run begins again without computing them.
    again = tmp_path / "again"
    execute(request_of(tiny_model_dir, again, rows, evaluated, full=full))
    assert (again / KEPT).read_bytes() == (tmp_path / "aside").read_bytes()
    assert losses(again) == losses(whole)
    # A completed run goes on for more steps, in its own folder, from its own references.
    execute(request_of(tiny_model_dir, again, rows, evaluated, resume="auto", num_epochs=3))
    assert (again / KEPT).read_bytes() == (tmp_path / "aside").read_bytes()
    assert len(losses(again)) == 18


def test_marked_answers_are_trained(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    request = request_of(tiny_model_dir, tmp_path / "out", marked(11), marked(4), settings={"objective": "kto"})
    execute(request)
    rows = [row for row in read_metrics(tmp_path / "out" / METRICS) if "loss" in row]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-4)
    assert rows[-1]["rewards/margins"] > 0
    assert {row["good"] + row["bad"] for row in rows} == {3.0, 4.0}


@pytest.mark.parametrize(
    ("rows", "settings"), [(pairs(22), {}), (marked(22), {"objective": "kto"})], ids=["pairs", "kto"]
)
def test_references_are_computed_a_part_of_the_data_at_a_time(
    rows: Any, settings: dict[str, Any], tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Training data may be larger than the memory; the parts have the very batches of the whole."""
    original, together = SingleDevice.evaluate, []

    def evaluated(device: SingleDevice, batches: Any) -> tuple[float, int]:
        together.append(len(batches))
        return original(device, batches)

    monkeypatch.setattr(SingleDevice, "evaluate", evaluated)
    for name, most in (("whole", 64), ("parts", 2)):
        monkeypatch.setenv("AIFT_CACHE", str(tmp_path / name / "cache"))
        monkeypatch.setattr(references, "_AT_A_TIME", most)
        together.clear()
        one_step = {"schedule": ScheduleConfig(max_steps=1), "warmup_steps": 0}
        execute(request_of(tiny_model_dir, tmp_path / name, rows, settings=settings, **one_step))
        assert max(together) <= most
        assert sum(together) == 11 * (2 if settings else 1)
    whole, parts = (load_file(tmp_path / name / KEPT)["train"] for name in ("whole", "parts"))
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(
    ("objective", "loss", "passes"),
    [("preference", "sigmoid", 1), ("preference", "simpo", 0), ("kto", "kto", 2), ("kto", "apo_zero_unpaired", 1)],
)
def test_the_plan_counts_a_fork_once_and_the_pass_of_the_reference(
    objective: str, loss: Any, passes: int, tiny_model_dir: Path, tmp_path: Path
):
    """At a token a second: the prompt of a pair once and both answers, and a third of it for what goes forward alone."""
    rows, evaluated = (pairs(22), pairs(3, seed=9)) if objective == "preference" else (marked(22), marked(4))
    settings = {"objective": objective, "preference": PreferenceConfig(loss)}
    request = request_of(tiny_model_dir, tmp_path, rows, evaluated, settings=settings, num_epochs=2)
    summary = resolve(request).summary
    tokens, scored = sum(map(len, rows)), sum(map(len, evaluated))
    if objective == "preference":
        assert tokens == sum(sum(example.fork) for example in rows)
    assert (summary.tokens, summary.eval_tokens) == (tokens, scored)
    found = replace(summary, speed=Speed(1.0, PILOT)).parts
    assert found is not None
    forward = (summary.evaluations + 1) * scored + passes * (tokens + scored)
    assert found.steps + found.evaluations == pytest.approx(2 * tokens + forward / 3)


def test_what_does_not_go_with_pairs_is_refused(tiny_model_dir: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no pair of answers|組ではありません|TextDataset"):
        execute(request_of(tiny_model_dir, tmp_path / "a", marked(12)))
    packed = request_of(tiny_model_dir, tmp_path / "b", pairs(12))
    with pytest.raises(ConfigError):
        execute(replace(packed, hooks=replace(packed.hooks, compute_metrics=lambda predictions: {})))


def test_a_pilot_and_a_loss_without_a_reference_compute_none(tiny_model_dir: Path, tmp_path: Path):
    assert try_steps(resolve(request_of(tiny_model_dir, tmp_path / "out", pairs(12)))).summary.speed is not None
    settings = {"objective": "preference", "preference": PreferenceConfig("simpo")}
    execute(request_of(tiny_model_dir, tmp_path / "out", pairs(12), settings=settings))
    assert not (tmp_path / "out" / KEPT).exists()


def test_the_best_weights_are_those_that_tell_the_answers_apart(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The likelihood that `sft_weight` adds to a step is no part of the evaluation loss, which says what is best, when to stop
    and how the run went: it is many times as large as what the pairs are compared by.
    """
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    rows, evaluated = pairs(16), pairs(4, seed=9)
    settings = {"preference": PreferenceConfig("sigmoid", sft_weight=2.0)}
    execute(request_of(tiny_model_dir, tmp_path / "run", rows, evaluated, settings=settings))
    written = read_metrics(tmp_path / "run" / METRICS)
    evaluations, steps = (
        [row for row in written if ("eval_loss" in row) == evaluating] for evaluating in (True, False)
    )
    assert evaluations[0]["eval_loss"] == pytest.approx(0.693147, rel=1e-5)
    assert all(row["eval_nll_loss"] > 2 for row in evaluations)
    for row in steps:
        assert row["loss"] > 2 * row["nll_loss"] > 4
    best = min(evaluations, key=lambda row: row["eval_loss"])
    assert best["step"] > 0
    kept = json.loads((tmp_path / "run" / CHECKPOINTS / BEST / BEST_NOTE).read_text(encoding="utf-8"))
    assert (kept["step"], kept["eval_loss"]) == (best["step"], best["eval_loss"])
