"""Following a run by a cursor, and runs beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ai_finetuning.engine.metrics import MetricsFile, read_metrics
from ai_finetuning.runs.compare import compare, thinned
from ai_finetuning.runs.process import identity
from ai_finetuning.runs.watch import MOST, console, watch


def step(number: int, **values: Any) -> dict[str, Any]:
    return {"step": number, "total_steps": 100, "loss": 2.0, "seconds": 0.5 * number} | values


def test_rows_come_once_and_whole(tmp_path: Path):
    assert watch(tmp_path).rows == []
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    cursor = watch(tmp_path).cursor
    metrics.write(step(1))
    metrics.write(step(2))
    update = watch(tmp_path, cursor)
    assert [row["step"] for row in update.rows] == [1, 2]
    assert all(row["time"] > 1.7e9 for row in update.rows)
    file = (tmp_path / "metrics.jsonl").open("ab")
    line = json.dumps(step(3)).encode()
    file.write(line[:20])
    file.flush()
    half = watch(tmp_path, update.cursor)
    assert (half.rows, half.cursor, half.reset, half.more) == ([], update.cursor, False, False)
    file.write(line[20:] + b"\n")
    file.close()
    assert [row["step"] for row in watch(tmp_path, half.cursor).rows] == [3]
    assert [row["step"] for row in watch(tmp_path, "nonsense").rows] == [1, 2, 3]


def test_a_resumed_run_begins_the_rows_anew(tmp_path: Path):
    """It cuts the rows behind its checkpoint, and may have written more than before until somebody asks again."""
    file = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(file)
    for number in range(1, 7):
        metrics.write(step(number))
    metrics.close()
    before = watch(tmp_path)
    resumed = MetricsFile(file, keep_until_step=4)
    update = watch(tmp_path, before.cursor)
    assert (update.reset, [row["step"] for row in update.rows]) == (True, [1, 2, 3, 4])
    for number in range(5, 20):
        resumed.write(step(number, seconds=number))
    longer = watch(tmp_path, before.cursor)
    assert (longer.reset, [row["step"] for row in longer.rows]) == (True, list(range(1, 20)))
    assert [row["step"] for row in read_metrics(file)] == list(range(1, 20))
    kept = watch(tmp_path, longer.cursor)
    assert (kept.reset, kept.rows) == (False, [])


def test_links_are_not_followed(tmp_path: Path):
    """A run's folder may be somebody else's, and what a link points to is no part of it."""
    (tmp_path / "secret").write_text(json.dumps(step(1)) + "\n", encoding="utf-8")
    for name in ("metrics.jsonl", "console.log"):
        (tmp_path / name).symlink_to(tmp_path / "secret")
    assert watch(tmp_path).rows == []
    assert console(tmp_path)[0] == ""
    assert compare([tmp_path]).loss == [[]]


def test_an_answer_is_bounded(tmp_path: Path):
    line = json.dumps({"step": 1, "text": "x" * 1000}) + "\n"
    (tmp_path / "metrics.jsonl").write_text(line * 2500 + "y" * 3 * MOST + "\n" + line, encoding="utf-8")
    cursor, seen, more = "", 0, True
    while more:
        update = watch(tmp_path, cursor)
        assert len(update.rows) * len(line) <= MOST
        assert update.cursor != cursor
        cursor, seen, more = update.cursor, seen + len(update.rows), update.more
    assert seen == 2501


def test_the_time_left_is_that_of_this_process(tmp_path: Path):
    """Not by the steps of an earlier day, whose pace says nothing, and by the last 20 only."""
    (tmp_path / "run.json").write_text(json.dumps({"status": "running"} | identity()), encoding="utf-8")
    old = [step(number, seconds=number * 100.0) for number in range(1, 41)]
    slow = [step(number, seconds=(number - 40) * 60.0) for number in range(41, 51)]
    rows = [*old, *slow]
    for number in range(51, 81):
        rows.append(step(number, seconds=rows[-1]["seconds"] + 2.0))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert watch(tmp_path).seconds_left == 20 * 2.0
    (tmp_path / "metrics.jsonl").write_text(json.dumps(step(1)) + "\n", encoding="utf-8")
    assert watch(tmp_path).seconds_left is None
    (tmp_path / "run.json").write_text(json.dumps({"status": "completed"}), encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text(text, encoding="utf-8")
    assert watch(tmp_path).seconds_left is None


def test_settings_that_differ_and_curves(tmp_path: Path):
    for name, rate, more in (("a", "1e-4", ""), ("b", "2e-4", "  num_epochs: 5\n")):
        folder = tmp_path / name
        folder.mkdir()
        text = f"model:\n  name: org/m\ntraining:\n  output_dir: {folder}\n  learning_rate: {rate}\n{more}"
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        rows = [step(number, loss=3.0 / number) for number in (1, 2)] + [{"step": 2, "eval_loss": 1.5}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.settings == {"training.learning_rate": [1e-4, 2e-4], "training.num_epochs": [3, 5]}
    assert found.loss == [[(1, 3.0), (2, 1.5)]] * 2
    assert found.eval_loss == [[(2, 1.5)]] * 2
    (tmp_path / "b" / "config.yaml").write_text("training: {learning_rate: fast}\n", encoding="utf-8")
    broken = compare([tmp_path / "a", tmp_path / "b"]).settings
    assert broken["training.learning_rate"] == [1e-4, "fast"]  # what is written, where it is refused today


def test_long_curves_keep_their_ends_and_extremes():
    points = [(number, 1.0) for number in range(50_000)]
    points[31_234] = (31_234, 9.0)
    points[777] = (777, -9.0)
    kept = thinned(points)
    assert len(kept) <= 2000
    assert {(31_234, 9.0), (777, -9.0)} <= set(kept)
    assert [number for number, _ in kept] == sorted({number for number, _ in kept})
    assert thinned(points[:2000]) == points[:2000]
