"""What a run.json says of a run, whoever has its process number by now; and requests that are not for this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.support.patience import until
from tests.support.systems import needs_sigkill

from ai_finetuning.config.run_folder import RUN, STOP
from ai_finetuning.errors import UsageError
from ai_finetuning.runs.phase import CHILD, PHASES, phase, tell_phase
from ai_finetuning.runs.process import identity, is_alive
from ai_finetuning.runs.state import State, state_of
from ai_finetuning.runs.stop import drop_earlier_stop, stop, take_stop


def write(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / RUN).write_text(json.dumps(values), encoding="utf-8")
    return folder


def test_a_process_is_known_by_more_than_its_number():
    mine = identity()
    assert is_alive(mine)
    assert is_alive({key: mine[key] for key in ("pid", "host")})  # of an earlier version
    assert not is_alive(mine | {"created": mine["created"] - 60})  # the number is another program's by now
    assert not is_alive(mine | {"host": "elsewhere"})
    for odd in (None, "1", -1, 2**40, True):
        assert not is_alive(mine | {"pid": odd, "created": 0.0})
    for odd in (float("nan"), float("inf"), 10**400, "1", [1]):  # nobody is ended by a file that avoids the question
        assert not is_alive(mine | {"created": odd})


def test_half_a_character_in_a_run_json_stays_what_it_is(tmp_path: Path):
    """As it stands in a file that somebody changed: the next phase is written beside it."""
    run = write(tmp_path / "run", status="running", name="a\ud83cb", **identity())
    tell_phase(run, "data")
    stored = json.loads((run / RUN).read_text(encoding="utf-8"))
    assert stored["name"] == "a\ud83cb"
    assert stored["phase"]["name"] == "data"


@pytest.mark.skipif(os.name == "nt", reason="there are no zombies")
def test_a_process_that_ended_and_nobody_waited_for_is_not_at_work():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = identity(child.pid)
        assert is_alive(known)
        child.stdin.close()
        until(lambda: not is_alive(known), 20, "the child ends")
        assert child.returncode is None  # a zombie until somebody waits


def test_states(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", "en")
    mine, gone = identity(), identity() | {"created": 1.0}
    assert state_of({"status": "running"} | mine | {"phase": phase("evaluation")}).phase == "evaluation"
    assert state_of({"status": "running"} | gone).status == "stopped"
    assert "its process is gone" in (state_of({"status": "running"} | gone).reason or "")
    assert "another PC" in (state_of({"status": "running"} | mine | {"host": "elsewhere"}).reason or "")
    assert state_of({"status": "completed", "reason": None} | gone).status == "completed"
    asked = state_of({"status": "stopped", "reason": "PreemptedError: saved"})
    assert (asked.status, asked.at_work) == ("stopped", False)
    assert state_of({"status": "stopped", "reason": "DataError: no rows"}).status == "failed"
    waiting = {"phase": phase("waiting")}
    assert state_of({CHILD: mine | waiting}).status == "waiting"
    assert state_of({"status": "completed", CHILD: mine | waiting}).at_work
    assert state_of({CHILD: gone | waiting}).status == "stopped"
    for told in ({"name": ["training"], "since": 10**400}, {"name": "x", "since": float("nan")}, ["training"]):
        assert state_of({"status": "running", "phase": told} | mine) == State("running")
    failed = state_of({CHILD: gone | {"reason": "InputNotFoundError: no such file"}})
    assert (failed.status, failed.reason) == ("failed", "InputNotFoundError: no such file")
    assert state_of({"status": "completed", CHILD: gone | {"reason": "ConfigError: x"}}).status == "completed"
    for strange in (
        {},
        {"status": 3},
        {CHILD: 5, "phase": "x"},
        {"status": "running", "pid": [], "phase": {"name": 1}},
    ):
        assert state_of(strange).status == "stopped"


def test_a_phase_goes_into_the_runs_own_file_only(tmp_path: Path):
    tell_phase(tmp_path, "data")  # no run is there
    assert not (tmp_path / RUN).exists()
    strangers = write(tmp_path, status="running", **identity() | {"pid": 1})
    tell_phase(strangers, "data")
    assert "phase" not in json.loads((tmp_path / RUN).read_text())
    write(tmp_path, status="running", **identity())
    for name in PHASES:
        tell_phase(tmp_path, name)
        assert state_of(json.loads((tmp_path / RUN).read_text())).phase == name


def test_a_request_reaches_the_process_that_it_is_for(tmp_path: Path):
    run = write(tmp_path, status="running", **identity())
    assert take_stop(run) is None
    stop(run, "best")
    drop_earlier_stop(run)  # it is of this process
    assert take_stop(run) == "best"
    assert take_stop(run) is None
    (run / STOP).write_text('{"how": "save"}', encoding="utf-8")  # by hand, or by another program
    assert take_stop(run) == "save"
    for text in ('{"how": "explode"}', "[]", "{", '{"how": ["save"]}'):
        (run / STOP).write_text(text, encoding="utf-8")
        assert take_stop(run) is None
        assert not (run / STOP).exists()
    earlier = {"how": "save", "of": identity() | {"created": 1.0}}
    for read in (take_stop, drop_earlier_stop):
        (run / STOP).write_text(json.dumps(earlier), encoding="utf-8")
        assert read(run) is None
        assert not (run / STOP).exists()


def test_what_is_not_at_work_is_not_stopped(tmp_path: Path):
    for values in ({"status": "completed"}, {"status": "running"} | identity() | {"created": 1.0}):
        with pytest.raises(UsageError, match="not at work"):
            stop(write(tmp_path, **values))
        assert not (tmp_path / STOP).exists()
    elsewhere = write(tmp_path, status="running", **identity() | {"host": "another-pc"})
    stop(elsewhere, "now")  # a shared folder: that PC's run reads it
    assert json.loads((tmp_path / STOP).read_text())["how"] == "now"
    there = identity() | {"host": "another-pc"}
    stop(write(tmp_path, status="stopped", **{CHILD: there}), "save")  # it waits there, or prepares
    assert json.loads((tmp_path / STOP).read_text()) == {"how": "save", "of": there}


@pytest.mark.skipif(os.name == "nt", reason="the tree of processes is made with a shell of POSIX")
def test_now_ends_a_process_with_what_it_has_started(tmp_path: Path):
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline()  # of the grandchild
        import psutil

        grandchild = identity(psutil.Process(parent.pid).children()[0].pid)
        stranger = write(tmp_path, status="running", **identity(parent.pid) | {"created": None})
        assert "after this step" in stop(stranger, "now").en  # anybody can write a number into a file
        assert is_alive(grandchild)
        assert (tmp_path / STOP).exists()
        run = write(tmp_path, status="running", **identity(parent.pid))
        assert "no checkpoint yet" in stop(run, "now").en
        until(lambda: not is_alive(grandchild), 20, "the grandchild ends")
    assert parent.returncode != 0
    state = state_of(json.loads((tmp_path / RUN).read_text()))
    assert state.status == "stopped"
    assert not (tmp_path / STOP).exists()


@needs_sigkill
def test_now_ends_the_group_of_a_process_that_was_launched(tmp_path: Path):
    """With what a child of it has started that has ended meanwhile."""
    orphan = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid, flush=True)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {orphan!r}]); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        left = identity(int(parent.stdout.readline()))
        import psutil

        until(lambda: not psutil.Process(parent.pid).children(), 20, "its child ends")
        assert is_alive(left)
        stop(write(tmp_path, status="running", **identity(parent.pid)), "now")
        until(lambda: not is_alive(left), 20, "what is left ends")


def test_a_saved_run_is_being_judged_while_its_process_lives():
    from ai_finetuning.runs.state import is_being_judged

    pending = {"status": "completed", "verdict": {"result": None, "pending": True}}
    assert is_being_judged(pending | identity())
    assert not is_being_judged(pending | identity() | {"created": 1.0})
    assert not is_being_judged({"status": "completed", "verdict": {"result": "adopt"}} | identity())
    assert not is_being_judged({"status": "completed", "verdict": "pending"} | identity())
