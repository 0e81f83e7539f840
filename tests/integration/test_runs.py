"""Runs as children that nobody owns: started, followed, stopped, resumed and queued through `runs/` and `aift runs`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call, environment, write_run
from tests.support.patience import until
from tests.support.runs import ROWS, losses, train_lora, weights_digest
from tests.support.systems import needs_broken_pipe, needs_orphans, needs_sigkill

from ai_finetuning.config.load import load_config
from ai_finetuning.config.run_folder import CHECKPOINTS, STOP
from ai_finetuning.engine.faults import Faults
from ai_finetuning.engine.hooks import Control
from ai_finetuning.engine.metrics import read_metrics
from ai_finetuning.engine.train_state import TrainState
from ai_finetuning.errors import ConfigError, PreemptedError, RunLockedError
from ai_finetuning.execution.followed import Followed
from ai_finetuning.runs.devices import occupants, occupying
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.launch import launch, resume
from ai_finetuning.runs.phase import CHILD
from ai_finetuning.runs.process import is_alive
from ai_finetuning.runs.state import State, state_of
from ai_finetuning.runs.stop import stop
from ai_finetuning.runs.watch import console, watch
from ai_finetuning.system.children import isolated_environment

HELD_OUT = ROWS[:4]


@pytest.fixture(autouse=True)
def own_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run of another test is waited for."""
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "state"))


def state(folder: Path) -> State:
    return state_of(read_run(folder))


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, str], None]:
    """Asks the runs of this process for a stop during a step, as another program would."""

    def ask(at: int, how: str) -> None:
        inject = Faults.inject

        def injected(self: Faults, point: str, step: int) -> str | None:
            if point == "step" and step == at and how not in asked:
                asked.append(how)
                # As a run on another PC is asked by this one, which cannot end its processes.
                (running[-1] / STOP).write_text(json.dumps({"how": how}), encoding="utf-8")
            return inject(self, point, step)

        monkeypatch.setattr(Faults, "inject", injected)

    running: list[Path] = []
    asked: list[str] = []
    begin = Followed.on_train_begin

    def noted(self: Followed, *details: Any) -> None:
        running.append(self._folder)
        begin(self, *details)

    monkeypatch.setattr(Followed, "on_train_begin", noted)

    return ask


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_lora(tiny_model_dir, folder, evaluate=HELD_OUT, eval_steps=5)
    return folder


@pytest.mark.parametrize(("how", "saved"), [("save", 8), ("now", 6)])
def test_a_stopped_run_goes_on_with_the_same_bits(
    how: str, saved: int, asking: Callable[..., None], tiny_model_dir: Path, whole: Path, tmp_path: Path
):
    folder = tmp_path / "run"
    asking(8, how)
    said = "interrupted: saved up to step 8" if how == "save" else "without saving"
    with pytest.raises(PreemptedError, match=said):
        train_lora(tiny_model_dir, folder, evaluate=HELD_OUT, eval_steps=5)
    assert (state(folder).status, (folder / STOP).exists()) == ("stopped", False)
    assert max(int(path.name.rpartition("-")[2]) for path in (folder / CHECKPOINTS).glob("checkpoint-*")) == saved
    train_lora(tiny_model_dir, folder, evaluate=HELD_OUT, eval_steps=5, resume="auto")
    assert state(folder).status == "completed"
    assert losses(folder) == losses(whole)
    assert weights_digest(folder) == weights_digest(whole)
    rows = read_metrics(folder / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 13))
    assert [row["time"] for row in rows] == sorted(row["time"] for row in rows)


def test_a_run_that_is_asked_for_its_best_ends_with_it(
    asking: Callable[..., None], tiny_model_dir: Path, tmp_path: Path
):
    """Better by less than the threshold is not better, so that the first evaluation stays the best one."""
    folder, runtime = tmp_path / "run", {"early_stopping_threshold": 0.25}
    asking(8, "best")
    kept = {"evaluate": HELD_OUT, "eval_steps": 3, "learning_rate": 0.9, "runtime": runtime}
    trainer = train_lora(tiny_model_dir, folder, **kept)
    scores = [row["step"] for row in read_metrics(folder / "metrics.jsonl") if "eval_loss" in row]
    assert scores == [0, 3, 6, 8]  # evaluated once more where it was asked
    run = read_run(folder)
    assert (run["status"], run["best"]["step"], run["result"]["steps"]) == ("completed", 3, 8)
    assert weights_digest(folder) == weights_digest(folder / CHECKPOINTS / "best")
    assert trainer.result.saved_step == 3


def test_a_run_that_is_asked_for_its_best_before_it_trains_makes_one_step(tmp_path: Path):
    (tmp_path / STOP).write_text(json.dumps({"how": "best"}), encoding="utf-8")
    followed, control = Followed(tmp_path), Control()
    followed.on_train_begin(TrainState(1), control)
    assert control == Control()
    followed.on_step_end(TrainState(1, step=1), control, {})
    assert control == Control(should_training_stop=True, should_evaluate=True, should_return_best=True)


def test_phases_are_told_while_it_trains(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from ai_finetuning.runs import phase

    told: list[str] = []
    monkeypatch.setattr(phase, "phase", lambda name, make=phase.phase: told.append(name) or make(name))
    train_lora(tiny_model_dir, tmp_path / "run", evaluate=HELD_OUT, eval_steps=6)
    assert told == ["evaluation", "training", "evaluation", "training", "evaluation", "training", "saving"]
    run = read_run(tmp_path / "run")
    assert {"pid", "host", "created"} <= set(run)
    assert run["started"]


STARTER = """
import sys, time
from pathlib import Path
from ai_finetuning.config.load import load_config
from ai_finetuning.runs.launch import launch
print(launch(load_config(sys.argv[1]), Path(sys.argv[2]), "survivor"), flush=True)
heavy = [name for name in ("torch", "transformers", "datasets") if name in sys.modules]
print(heavy, flush=True)
time.sleep(600)
"""


@needs_orphans
def test_a_run_survives_its_starter_and_is_found_again(tiny_model_dir: Path, tmp_path: Path):
    """Its steps 9 to 18 take a second more each, so that it is still at work when it is asked to stop."""
    config = write_run(tmp_path, tiny_model_dir, runtime={"progress": False, "report_samples": 0, "precision": "fp32"})
    slow = ",".join(f"step:slow@{number}" for number in range(9, 19))
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(config), str(tmp_path / "runs")],
        env=environment(PYTHONPATH=isolated_environment()["PYTHONPATH"], AIFT_FAULT=slow),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        folder = Path(starter.stdout.readline().strip())
        assert starter.stdout.readline().strip() == "[]"  # no torch
    finally:
        starter.kill()
        starter.wait()
        starter.stdout.close()
    phases, rows, cursor = set(), [], ""

    def follow(status: str) -> bool:
        nonlocal cursor, rows
        update = watch(folder, cursor)
        rows = update.rows if update.reset else rows + update.rows
        cursor = update.cursor
        phases.add(update.state.phase)
        return update.state.status == status

    until(lambda: follow("running") and any(row["step"] >= 9 for row in rows), 60, "the child trains")
    assert watch(folder).seconds_left > 0
    with pytest.raises(RunLockedError):
        resume(folder)
    stop(folder, "save")
    until(lambda: follow("stopped"), 60, "it stops")
    follow("stopped")
    assert {"data", "training"} <= phases
    last = [row["step"] for row in rows if "loss" in row]
    assert last == list(range(1, last[-1] + 1))  # no gap, although nobody was there
    assert "エラー" not in state(folder).reason
    text, _ = console(folder)
    assert "interrupted: saved up to step" in text
    assert "error" not in text
    assert call("resume", str(folder)) == 0
    assert call("train", str(config), f"training.output_dir={tmp_path / 'plain'}") == 0
    assert losses(folder) == losses(tmp_path / "plain")
    assert weights_digest(folder) == weights_digest(tmp_path / "plain")


def waiting(folder: Path) -> bool:
    return state(folder).status == "waiting"


def test_a_job_waits_for_its_device_and_two_starters_do_not_meet(
    tiny_model_dir: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The child that begins last finds its data gone, which shows that it began, and its reason where it is looked for."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = write_run(tmp_path, tiny_model_dir)
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    with occupying(["cpu"]):
        queued = launch(load_config(config), tmp_path / "runs", "queued", wait=True)
        with pytest.raises(ConfigError, match="exists already"):
            launch(load_config(config), tmp_path / "runs", "queued", wait=True)
        outcomes: list[object] = []

        def start() -> None:
            try:
                outcomes.append(resume(stopped, wait=True))
            except RunLockedError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(isinstance(item, RunLockedError) for item in outcomes) == [False, True]
        until(lambda: waiting(queued) and waiting(stopped), 30, "both wait")
        until(lambda: "waiting for the device" in console(queued)[0], 30, "it says so")
        assert call("runs", "trash", str(queued)) == 75
        assert call("runs", "stop", str(stopped), "--now") == 0
        assert not is_alive(read_run(stopped)[CHILD])
        assert state(stopped).status == "completed"  # what was finished stays so
        (tmp_path / "rows.jsonl").unlink()
        assert waiting(queued)
    until(lambda: not state(queued).at_work, 60, "it begins, and ends")
    ended = state(queued)
    assert ended.status == "failed"
    assert "rows.jsonl" in ended.reason
    assert call("runs", "logs", str(queued)) == 0


def test_a_job_waits_for_one_that_still_prepares(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Before it imports what trains: a child enters the queue first."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    first = launch(load_config(write_run(tmp_path, tiny_model_dir)), tmp_path / "runs", "first")
    until(lambda: [item.folder for item in occupants()] == [str(first)], 30, "it is in the queue")
    assert state(first).phase == "preparing"
    assert "model" not in console(first)[0]  # nor has it said yet what it trains
    stop(first, "now")
    assert occupants() == []


@needs_sigkill
def test_a_waiting_job_is_stopped_by_its_file_and_a_killed_one_is_not_at_work(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = load_config(write_run(tmp_path, tiny_model_dir))
    with occupying(["cpu"]):
        asked, killed = (launch(config, tmp_path / "runs", name, wait=True) for name in ("asked", "killed"))
        until(lambda: "waiting for the device" in console(asked)[0], 30, "it waits")
        assert "gives up waiting" in stop(asked, "save").en
        until(lambda: not state(asked).at_work, 30, "it gives up")
        assert state(asked).status == "stopped"
        assert state(asked).reason.startswith("PreemptedError")
        os.kill(read_run(killed)[CHILD]["pid"], signal.SIGKILL)
        until(lambda: not state(killed).at_work, 30, "it is gone")
        assert state(killed).status == "stopped"


def test_the_verbs_read_any_run(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(whole, tmp_path / "outputs" / "one")
    shutil.copytree(whole, tmp_path / "outputs" / "二つ目")
    place = ("--in", str(tmp_path))
    assert call("runs", "list", "--json", *place) == 0
    listed = {item["folder"].rpartition("/")[2]: item for item in json.loads(capsys.readouterr().out)}
    assert listed["one"]["id"] == "one"
    assert (listed["one"]["status"], listed["one"]["step"]) == ("completed", 12)
    for id in ("one", "二つ目", listed["二つ目"]["id"]):
        assert call("runs", "show", id, *place) == 0
    assert "12/12" in capsys.readouterr().out
    assert call("runs", "compare", "one", "二つ目", "--json", *place) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"] == {}
    assert [len(curve) for curve in found["loss"]] == [12, 12]
    assert call("runs", "compare", "one", "二つ目", *place) == 0
    assert call("runs", "compare", "one", *place) == 64
    assert call("runs", "logs", "one", *place) == 66
    assert call("runs", "stop", "one", *place) == 64
    assert call("runs", "stop", "one", "--best", "--now", *place) == 64
    assert call("runs", "show", "nothing", *place) == 66
    assert call("runs", "rename", "one", "two", *place) == 0
    assert call("runs", "rename", "two", "a/b", *place) == 78
    assert call("runs", "trash", "two", *place) == 0
    assert not (tmp_path / "outputs" / "two").exists()
    assert call("runs", "restore", *place) == 0
    assert call("runs", "restore", "three", *place) == 66
    assert call("runs", "restore", "two", *place) == 0
    assert (tmp_path / "outputs" / "two").is_dir()
    assert call("runs", "resume", listed["二つ目"]["id"], "--dry-run", "--detach", *place) == 64


@needs_broken_pipe
@pytest.mark.parametrize("arguments", [("list",), ("logs", "one")])
def test_a_reader_that_has_seen_enough_is_no_error(arguments: tuple[str, ...], tmp_path: Path):
    """As `aift runs list | head -1` ends: with nothing but the end."""
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"status": "completed"}), encoding="utf-8")
    (folder / "console.log").write_text("a line\n" * 10, encoding="utf-8")
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ai_finetuning", "runs", *arguments]
    here = environment(PYTHONPATH=isolated_environment()["PYTHONPATH"])
    done = subprocess.run(command, env=here, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


NO_TORCH = """
import importlib, pkgutil, sys
from ai_finetuning import runs
from ai_finetuning.apps.cli.main import run
for module in pkgutil.iter_modules(runs.__path__):
    importlib.import_module(f"ai_finetuning.runs.{module.name}")
for arguments in (["list"], ["show", "one"], ["compare", "one", "two"], ["stop", "one"], ["best", "one"],
                  ["adopt", "one"], ["trash", "two"]):
    run(["runs", *arguments])
print([name for name in ("torch", "transformers", "datasets", "numpy") if name in sys.modules])
"""


def test_nothing_of_it_imports_torch(whole: Path, tmp_path: Path):
    for name in ("one", "two"):
        shutil.copytree(whole, tmp_path / "outputs" / name)
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH],
        env=environment(PYTHONPATH=isolated_environment()["PYTHONPATH"]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert (tmp_path / "outputs" / ".trash").is_dir()


def test_resuming_by_id_is_resuming_by_folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One function with the same arguments."""
    from ai_finetuning.apps.cli import resume as verb
    from ai_finetuning.apps.cli import runs

    shutil.copytree(whole, tmp_path / "outputs" / "one")
    monkeypatch.chdir(tmp_path)
    taken: list[Any] = []
    for module in (verb, runs):
        monkeypatch.setattr(module, "resume_folder", lambda *given, **options: taken.append((given, options)))
    assert call("resume", "outputs/one", "num_epochs=5", "--allow-changed") == 0
    assert call("runs", "resume", "one", "num_epochs=5", "--allow-changed") == 0
    assert [(Path(path), list(changes), options) for (path, changes), options in taken] == [
        (Path("outputs/one"), ["num_epochs=5", "--allow-changed"], {"plan_as": None})
    ] * 2


def test_what_no_file_may_allow_is_not_launched(tiny_model_dir: Path, tmp_path: Path):
    path = write_run(tmp_path, tiny_model_dir)
    with pytest.raises(ConfigError, match="trust_remote_code"):
        launch(load_config(path, ["model.trust_remote_code=true"]), tmp_path / "runs")
    with pytest.raises(ConfigError, match="data.train"):
        launch(load_config(path, ["data.train=null"]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_settings_that_cannot_be_are_refused_before_anything_starts(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    path = write_run(tmp_path, tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", "en")
    assert call("runs", "launch", str(path), "data.train=none.jsonl", "training.output_dir=outputs/new") == 66
    assert "none.jsonl does not exist" in capsys.readouterr().err
    assert not (tmp_path / "outputs" / "new").exists()


def test_what_cannot_be_read_is_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIFT_LANG", "en")
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "run.json").write_text("[1, 2]", encoding="utf-8")
    (odd / "config.yaml").write_text("model: {name: x}\n", encoding="utf-8")
    assert call("runs", "show", "odd") == 66
    assert "cannot be read" in capsys.readouterr().err
    assert call("runs", "show", "あ" * 300) == 66  # longer than a file system's names
    for verb in (("list",), ("show", "odd")):
        assert call("runs", *verb, "--in", "none") == 66  # rather than no run


def test_a_changed_path_is_taken_from_where_one_stands(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As `aift resume` takes it: the child stands where its starter did."""
    shutil.copytree(whole, tmp_path / "outputs" / "one")
    monkeypatch.chdir(tmp_path)
    folder = resume(tmp_path / "outputs" / "one", ["data.train=none.jsonl"])
    until(lambda: not state(folder).at_work, 60, "the child refuses the file")
    assert f"none.jsonl does not exist (current folder: {tmp_path})" in console(folder)[0]
