"""Runs over streamed data: the bits of a prepared run, what is said of rows that nobody counts, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.commands import call, write_run
from tests.support.runs import losses, train_lora, weights_digest

from ai_finetuning import DataConfig
from ai_finetuning.config.run import RunConfig
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.errors import ConfigError

STREAM = ("data.streaming=true", "training.schedule.max_steps=8")


def write_rows(config: Path, rows: list[dict[str, str]] | None = None, fill: int = 2**18) -> list[dict[str, str]]:
    """The run's rows in pieces of four: a column that nobody learns fills them."""
    path = config.parent / "rows.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if rows is None else rows
    found = [item | {"note": "x" * fill} for item in found]
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in found), encoding="utf-8")
    return found


def test_the_bits_are_those_of_a_prepared_run_whose_rows_come_in_that_order(tmp_path: Path, tiny_model_dir: Path):
    """The streamed file has the rows in the order in which the prepared run takes them, so that no order is patched."""
    prepared = write_run(tmp_path / "prepared", tiny_model_dir, num_epochs=1)
    rows = write_rows(prepared, fill=0)
    assert call("train", str(prepared), "data.group_by_length=false") == 0
    order = np.random.Generator(np.random.Philox(key=[42, 0])).permutation(len(rows))
    streamed = write_run(tmp_path / "streamed", tiny_model_dir, num_epochs=1)
    write_rows(streamed, [rows[place] for place in order])
    assert call("train", str(streamed), "data.streaming=true", "training.schedule.max_steps=6") == 0
    folders = [tmp_path / name / "out" for name in ("prepared", "streamed")]
    assert len(losses(folders[0])) == 6
    assert losses(folders[0]) == losses(folders[1])
    assert weights_digest(folders[0]) == weights_digest(folders[1])


def test_plan_report_and_card_say_that_rows_are_streamed(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], logged: Any
):
    config = write_run(tmp_path, tiny_model_dir)
    write_rows(config)
    assert call("train", str(config), *STREAM, "--dry-run") == 0
    said = capsys.readouterr()
    assert "streamed for training (not counted), 4 for evaluation" in said.out
    assert "8 (4 rows a step, warm-up 2; data that ends before is read again)" in said.out
    assert "what follows is of the first 4 rows" in said.out + said.err
    assert call("train", str(config), *STREAM, "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert [plan[name] for name in ("rows", "tokens", "label_tokens", "steps_per_epoch")] == [None] * 4
    assert plan["looked_at"] == 4
    assert plan["estimated_run_tokens"] > 0
    assert call("train", str(config), *STREAM) == 0
    assert "is read to its end (6 steps, 22 rows)" in logged()
    folder = tmp_path / "out"
    assert "streamed for training (not counted)" in (folder / "report.html").read_text(encoding="utf-8")
    assert "rows not counted" in (folder / "README.md").read_text(encoding="utf-8")
    result = json.loads((folder / "run.json").read_text(encoding="utf-8"))["result"]
    assert (result["plan"]["rows"], result["steps"]) == (None, 8)
    epochs = [row["epoch"] for row in read_metrics(folder / "metrics.jsonl") if "loss" in row]
    assert epochs == [0, 0, 0, 0, 0, 1, pytest.approx(1 + 1 / 6, abs=1e-5), pytest.approx(1 + 2 / 6, abs=1e-5)]


def test_a_bad_row_stops_the_run_with_file_and_line_and_it_goes_on_without_it(
    tmp_path: Path, tiny_model_dir: Path, logged: Any
):
    config = write_run(tmp_path, tiny_model_dir)
    rows = write_rows(config)
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps(item, ensure_ascii=False) + "\n" for item in rows]
    lines[13] = '{"instruction": "壊れた行"\n'
    path.write_text("".join(lines), encoding="utf-8")
    assert call("train", str(config), *STREAM) == 65
    said = logged()
    assert re.search(r"rows\.jsonl:14 .*: not valid JSON", said)
    assert "To go on: aift resume" in said
    taken = [row["step"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "loss" in row]
    assert taken == [1, 2, 3]
    going_on = ("training.resume_from_checkpoint=auto", "data.skip_bad_rows=true")
    assert call("train", str(config), *STREAM, *going_on) == 0
    result = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["result"]
    assert (result["steps"], result["data"]["left_out"]) == (8, 1)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"training": {}}, "training.schedule.max_steps is None"),
        ({"data": {"packing": True}}, "data.packing is True"),
        ({"data": {"group_by_length": True}}, "data.group_by_length is True"),
        ({"data": {"eval": 0.1}}, "data.eval is 0.1"),
        ({"data": {"replay": {"path": "old.jsonl", "share": 0.1}}}, "data.replay.path is 'old.jsonl'"),
        ({"data": {"train": [{"path": "a.jsonl", "weight": 0.5}, "b.jsonl"]}}, "data.train is"),
        ({"data": {"max_samples": 10}}, "data.max_samples is 10"),
        ({"training": {"schedule": {"max_steps": 5}, "saves_per_epoch": 2}}, "training.saves_per_epoch is 2"),
        ({"training": {"schedule": {"max_steps": 5}, "evals_per_epoch": 2}}, "training.evals_per_epoch is 2"),
        ({"objective": "kto"}, "objective is 'kto'"),
    ],
)
def test_what_needs_all_rows_is_refused_with_the_way_out(changes: dict[str, Any], names: str):
    values = {"training": {"schedule": {"max_steps": 5}}} | changes
    values["data"] = {"train": "a.jsonl", "streaming": True} | changes.get("data", {})
    with pytest.raises(ConfigError) as refused:
        RunConfig(**values).validate()
    assert names in refused.value.en
    assert "not with data.streaming" in refused.value.en
    assert "data.streaming を消してください" in refused.value.ja
    RunConfig(**values | {"data": values["data"] | {"streaming": False}})


@pytest.mark.parametrize(("rows", "evaluate"), [(["文です。"], None), (Path("rows.jsonl"), 0.2)])
def test_rows_in_memory_and_shares_of_a_script_are_refused(
    rows: Any, evaluate: float | None, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path, tiny_model_dir)
    with pytest.raises(ConfigError, match=r"data\.streaming"):
        train_lora(
            tiny_model_dir,
            tmp_path / "out",
            rows=rows,
            evaluate=evaluate,
            data=DataConfig(max_length=64, streaming=True),
            schedule={"max_steps": 4},
        )


def test_a_checkpoint_of_a_run_that_did_not_stream_is_refused(tmp_path: Path, tiny_model_dir: Path, logged: Any):
    config = write_run(tmp_path, tiny_model_dir, num_epochs=1)
    assert call("train", str(config)) == 0
    assert call("train", str(config), *STREAM, "training.resume_from_checkpoint=auto") == 78
    assert "data.streaming: False -> True" in logged()


def test_evaluation_data_in_a_file_and_the_line_about_leakage(tmp_path: Path, tiny_model_dir: Path, logged: Any):
    config = write_run(tmp_path, tiny_model_dir)
    assert call("train", str(config), *STREAM) == 0
    assert "is not searched for the evaluation data" in logged()
    assert [row["step"] for row in read_metrics(tmp_path / "out" / "metrics.jsonl") if "eval_loss" in row] == [0, 5, 8]
