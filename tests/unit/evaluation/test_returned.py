"""The best weights as a run's result, and back: what the files say then, what is refused, and what a kill leaves."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.support.kept_runs import BEST_STEP, LAST_STEP, VERDICT, contents, kept_run, loaded, tensors
from tests.support.systems import needs_fork

from ai_finetuning.errors import CheckpointError, ConfigError, RunLockedError, StorageError, ToolkitError
from ai_finetuning.evaluation.returned import Best, Returned, best_of, returned_of, take_best, take_last, told_of
from ai_finetuning.runs import weights
from ai_finetuning.runs.folder import read_run

KINDS = [("adapter", "adapter"), ("single", "single"), ("shards", "shards"), ("single", "shards"), ("shards", "single")]


def values_of(kind: str, first: int) -> dict[str, int]:
    return {"w0": first, "w1": first + 1} if kind == "shards" else {"weight": first}


@pytest.mark.parametrize(("last", "best"), KINDS)
def test_the_best_weights_become_the_result_and_the_last_ones_come_back(tmp_path: Path, last: str, best: str):
    run = kept_run(tmp_path / "run", last, best)
    before = contents(run)
    found = take_best(run)
    assert (found.step, found.last_step) == (BEST_STEP, LAST_STEP)
    assert loaded(run) == values_of(best, 40)
    assert len(list(run.glob("*.safetensors"))) == len(loaded(run))  # nothing of the former ones beside them
    kept = run / "checkpoints" / "last"
    assert loaded(kept) == values_of(last, 80)
    assert (kept / "README.md").read_bytes() == before["README.md"]
    assert json.loads((kept / "base.json").read_text(encoding="utf-8"))["relative"] == "../../../base"
    # What is told of it.
    told = read_run(run)
    assert told["result"]["saved_step"] == BEST_STEP
    assert told["result"]["steps"] == LAST_STEP
    assert told["result"]["held_out_after"] == {"step": 4, "eval_loss": 1.0, "eval_perplexity": 2.0} | {
        key: None for key in told["result"]["held_out_after"] if key not in ("step", "eval_loss", "eval_perplexity")
    }
    assert told["result"]["verdict"]["saved"] == {"step": BEST_STEP, "loss": 1.0}
    assert told["verdict"]["result"] is None
    assert "最後の重み" in told["verdict"]["why"]["ja"]
    assert returned_of(told) == Returned(BEST_STEP, LAST_STEP, False, VERDICT)
    assert set(told["files"]) >= set(weights.weight_names(run))
    card, report = ((run / name).read_text(encoding="utf-8") for name in ("README.md", "report.html"))
    assert card.startswith("---\nlanguage: ja\n---\n\n# base (lora)\n")
    assert "最良のステップ 4" in card
    assert "weights of the last step, 8" in card
    assert "8" in report.partition('<p class="note">')[2]
    (first, second) = told_of(run, told)
    assert f"aift runs best {run} --undo" in first.en
    assert "判定は最後の重みのものです: 保留" in second.ja
    assert f"aift eval {run} --data FILE" in second.ja
    with pytest.raises(ConfigError, match="already.*--undo"):
        take_best(run)
    # And back, to the last byte.
    assert take_last(run).last_step == LAST_STEP
    assert contents(run) == before
    assert loaded(run) == values_of(last, 80)
    with pytest.raises(ConfigError, match="nothing to undo"):
        take_last(run)
    assert take_best(run).step == BEST_STEP


def test_a_verdict_that_is_still_to_be_measured_stays_to_be_measured(tmp_path: Path):
    run = kept_run(
        tmp_path / "run", verdict={"result": None, "pending": True, "step": LAST_STEP}, host=socket.gethostname()
    )
    take_best(run)
    assert read_run(run)["verdict"] == {"result": None, "pending": True}  # of the weights that are there then
    take_last(run)
    assert read_run(run)["verdict"]["step"] == LAST_STEP


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"best": None}, "data.eval"),
        (
            {"best": {"step": 8, "eval_loss": 1.0, "last_eval_loss": 1.0, "folder": "checkpoints/best"}},
            "are the best ones",
        ),
        (
            {"best": {"step": 4, "eval_loss": 1.0, "last_eval_loss": 1.0, "folder": "checkpoints/best"}},
            "are the best ones",
        ),
        ({"best": {"step": 0, "eval_loss": 1.0, "last_eval_loss": 2.0, "folder": None}}, "did not get better"),
        ({"best": {"step": 4, "eval_loss": 1.0, "last_eval_loss": 2.0, "folder": None}}, "load_best=true"),
        ({"result": {"steps": 8, "saved_step": 4}}, "already"),
        ({"status": "stopped"}, "aift resume"),
        ({"best": [1], "result": {"steps": "8"}}, "data.eval"),
        ({"result": None}, "aift resume"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_way_out(tmp_path: Path, changes: dict[str, Any], said: str):
    run = kept_run(tmp_path / "run", **changes)
    before = contents(run)
    with pytest.raises(ConfigError) as refused:
        take_best(run)
    assert said in refused.value.en
    assert refused.value.ja != refused.value.en
    assert contents(run) == before


def test_a_run_at_work_or_of_another_pc_keeps_its_result(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    with FileLock(str(run / ".lock")), pytest.raises(RunLockedError, match="stop it first"):
        take_best(run)
    elsewhere = {"status": "running", "host": "not-" + socket.gethostname(), "pid": 1, "created": 1.0}
    with pytest.raises(RunLockedError, match="another PC"):
        take_best(kept_run(tmp_path / "other", **elsewhere))
    judged = {"verdict": {"pending": True}, "host": "not-" + socket.gethostname(), "pid": 1}
    with pytest.raises(RunLockedError, match="another PC"):
        take_best(kept_run(tmp_path / "judged", **judged))
    assert loaded(tmp_path / "judged") == {"weight": 80}


def test_weights_that_are_not_what_was_kept_are_not_taken(tmp_path: Path):
    run = kept_run(tmp_path / "run", "shards")
    damaged = run / "checkpoints" / "best" / "model-00002-of-00002.safetensors"
    before = damaged.read_bytes()
    damaged.write_bytes(tensors(66, "w1"))
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors does not match its SHA-256"):
        take_best(run)
    damaged.write_bytes(before)
    stray = run / "checkpoints" / "best" / "model-00003-of-00003.safetensors"
    stray.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        take_best(run)
    stray.unlink()
    for kinds in (("adapter", "single"), ("single", "adapter")):  # a folder of something else
        other = kept_run(tmp_path / "-".join(kinds), *kinds)
        with pytest.raises(CheckpointError, match="no weights of this run"):
            take_best(other)
    empty = kept_run(tmp_path / "empty")
    (empty / "checkpoints" / "best" / "adapter_model.safetensors").unlink()
    (empty / "checkpoints" / "best" / "best.json").write_text('{"step": 4, "sha256": {}}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="no weights of this run"):
        take_best(empty)
    take_best(run)
    kept = run / "checkpoints" / "last" / "model-00001-of-00002.safetensors"
    os.replace(kept, tmp_path / "gone")
    with pytest.raises(CheckpointError, match="model-00001-of-00002.safetensors does not match"):
        take_last(run)
    assert loaded(run) == {"w0": 40, "w1": 41}


def test_the_room_is_looked_at_before_anything_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = kept_run(tmp_path / "run")
    before = contents(run)
    usage = shutil.disk_usage(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match="are needed"):
        take_best(run)
    assert contents(run) == before


def test_without_second_names_for_files_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = kept_run(tmp_path / "run", "shards")
    before = contents(run)

    def refused(*_: object, **__: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refused)
    take_best(run)
    assert loaded(run) == {"w0": 40, "w1": 41}
    take_last(run)
    assert contents(run) == before


def test_a_run_that_could_be_better_says_so(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    (line,) = told_of(run, read_run(run))
    assert f"aift runs best {run}" in line.en
    assert best_of(run, read_run(run)) == Best(BEST_STEP, 1.0, LAST_STEP, 2.0)
    shutil.rmtree(run / "checkpoints" / "best")
    assert told_of(run, read_run(run)) == []


KILLED = """
import os, sys
from pathlib import Path
from ai_finetuning.evaluation.returned import take_best, take_last
from tests.support.kept_runs import kept_run, contents, loaded
from tests.support.kills import dies_at

kind, best, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
if sys.argv[5] == "False":
    def link(*_):
        raise OSError("no links here")
    os.link = link
old = {"w0": 80, "w1": 81} if kind == "shards" else {"weight": 80}
new = {"w0": 40, "w1": 41} if best == "shards" else {"weight": 40}
kills, seen = 0, set()
for first, then in ((take_best, "again"), (take_best, "undo"), (take_last, "again"), (take_last, "undo")):
    for number in range(1, 500, int(sys.argv[4])):
        run = kept_run(folder / f"{first.__name__}-{then}-{number}", kind, best)
        before = contents(run)
        if first is take_last:
            take_best(run)
        if not dies_at(number, lambda: first(run)):
            break
        kills += 1
        there = loaded(run)
        assert there in (old, new), (first, number, there)
        seen.add(str(there))
        # A second call finishes, and the other one brings back what was there.
        other = take_last if first is take_best else take_best
        for work in ([first] if then == "again" else [other]):
            try:
                work(run)
            except Exception as error:
                assert type(error).__name__ == "ConfigError", (first, then, number, error)
        result = {"take_best": {"again": new, "undo": old}, "take_last": {"again": old, "undo": new}}[first.__name__][then]
        assert loaded(run) == result, (first, then, number, loaded(run))
        if result == new:
            assert '"saved_step": 4' in (run / "run.json").read_text()
            take_last(run)
        now = contents(run)
        now = {name: text for name, text in now.items() if "/.staging" not in name and "/.trash" not in name
               and not name.startswith((".staging", ".aift-")) and "/.aift-" not in name}
        now = {name: text for name, text in now.items() if not name.startswith("checkpoints/last/")}
        assert now == before, (first, then, number, set(now) ^ set(before), [n for n in before if now.get(n) != before[n]])
assert seen == {str(old), str(new)}
print("kills", kills)
"""


def swept(place: Path, last: str, best: str, *, stride: int, links: bool = True) -> int:
    """Kills at every so many steps of the file system, as many as there are."""
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    done = subprocess.run(
        [sys.executable, "-c", KILLED, last, best, str(place), str(stride), str(links)],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@needs_fork
def test_a_kill_leaves_one_whole_result(tmp_path: Path):
    assert swept(tmp_path, "shards", "shards", stride=9) > 10


@pytest.mark.slow
@needs_fork
@pytest.mark.parametrize(("last", "best"), KINDS)
def test_a_kill_between_any_two_steps_leaves_one_whole_result(tmp_path: Path, last: str, best: str):
    assert swept(tmp_path / "links", last, best, stride=1) > 60
    assert swept(tmp_path / "copies", last, best, stride=3, links=False) > 20


def test_whatever_run_json_holds_is_refused_by_a_toolkit_error(tmp_path: Path):
    for number, told in enumerate(([], {"step": -1}, {"step": 4, "last_step": "8"}, {"step": 4, "last_step": 8})):
        run = kept_run(tmp_path / str(number), returned=told)
        with pytest.raises(ToolkitError):
            take_last(run)
        assert loaded(run) == {"weight": 80}


def test_without_the_note_of_the_last_weights_nothing_is_undone(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    take_best(run)
    note = run / "checkpoints" / "last" / "last.json"
    told = json.loads(note.read_text(encoding="utf-8"))
    note.write_text(json.dumps(told | {"run": {}}), encoding="utf-8")
    before = contents(run)
    with pytest.raises(CheckpointError, match="last.json"):
        take_last(run)
    assert contents(run) == before
