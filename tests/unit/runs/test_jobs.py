"""Jobs that are no trainings: real processes, with verbs that need no torch."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
from tests.support.patience import until
from tests.support.systems import needs_sigkill

from ai_finetuning.errors import InputNotFoundError, RunLockedError, UsageError
from ai_finetuning.runs import jobs
from ai_finetuning.runs.devices import Place, occupants, visible_devices
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.jobs import Step
from ai_finetuning.runs.phase import CHILD


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue of this test's own."""
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "state"))


def _ended(job: jobs.Job) -> jobs.Job:
    until(lambda: not jobs.find(job.folder.parents[1], job.id, job.kind).state.at_work, 60, "the job ends")
    return jobs.find(job.folder.parents[1], job.id, job.kind)


def test_a_job_runs_its_commands_and_goes_on_behind_what_has_ended(tmp_path: Path) -> None:
    data, late = tmp_path / "data", tmp_path / "late"
    folder = jobs.new_folder(data, "export")
    steps = [Step(("version",)), Step(("runs", "list", "--in", str(late)))]
    job = jobs.start(folder, steps, {"shown": "FAQ"}, "ja")
    assert job.state.at_work
    job = _ended(job)
    assert (job.state.status, job.done, job.codes) == ("failed", 1, (0,))
    assert f"--in の {late} というフォルダーはありません" in str(job.state.reason)
    assert job.about == {"shown": "FAQ"}
    assert job.commands == [["aift", "version"], ["aift", "runs", "list", "--in", str(late)]]

    late.mkdir()
    job = _ended(jobs.again(job))
    assert (job.state.status, job.done) == ("completed", 2)
    said = "\n".join(jobs.last_said(folder))
    assert said.count("transformers") == 1  # the first command was not run again
    assert [item.id for item in jobs.listed(data, "export")] == [job.id]
    assert jobs.listed(data, "answers") == []


def test_a_code_that_may_be_is_no_failure(tmp_path: Path) -> None:
    folder = jobs.new_folder(tmp_path, "answers")
    job = _ended(jobs.start(folder, [Step(("runs", "show", "nowhere"), (66,))], {}, "en"))
    assert (job.state.status, job.codes) == ("completed", (66,))


def test_a_job_waits_for_the_device_and_can_be_taken_out_of_the_queue(tmp_path: Path) -> None:
    other = Place(visible_devices(), tmp_path / "training")
    other.take()
    try:
        folder = jobs.new_folder(tmp_path, "answers")
        job = jobs.start(folder, [Step(("version",))], {}, "ja")
        until(lambda: [item.folder for item in occupants() if item.waits] == [str(folder)], 60, "the job waits")
        assert jobs.find(tmp_path, job.id, "answers").state.status == "waiting"
        assert jobs.at_work(tmp_path) == {"answers": 1}
        with pytest.raises(RunLockedError):
            jobs.again(job)
        job = jobs.end(job)
        assert (job.state.status, job.done) == ("stopped", 0)
        assert jobs.at_work(tmp_path) == {}
        with pytest.raises(UsageError):
            jobs.end(job)
        job = jobs.again(job)
    finally:
        other.leave()
    assert _ended(job).state.status == "completed"


@needs_sigkill
def test_a_command_ends_with_a_job_that_is_killed(tmp_path: Path) -> None:
    """Else it would write beside the same command when the job goes on."""
    folder = jobs.new_folder(tmp_path, "answers")
    job = jobs.start(folder, [Step(("web", "--no-open", "--port", "0"))], {}, "ja")  # one that does not end by itself
    until(lambda: "http://127.0.0.1:" in "\n".join(jobs.last_said(folder)), 60, "its command is at work")
    process = psutil.Process(read_run(folder)[CHILD]["pid"])
    (command,) = process.children()
    process.kill()
    command.wait(60)
    assert jobs.find(tmp_path, job.id, "answers").state.status == "stopped"


def test_what_a_job_said_is_told_without_colours_and_secrets(tmp_path: Path) -> None:
    folder, token = jobs.new_folder(tmp_path, "export"), "hf_" + "a" * 34
    text = f"\x1b[2Kreading\r\x1b[31mred {token}\x1b[0m\n\x1b]0;title\x07safe \u202etxt\n"
    (folder / "console.log").write_text(text, encoding="utf-8")
    told = {"steps": [{"argv": ["version"], "may": []}], "about": {}, "codes": []}
    run = {"job": told, "made": 1.0, "status": "failed", "reason": f"DataError: \x1b[1m{token}\x07"}
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    lines = jobs.last_said(folder)
    assert [line.split()[0] for line in lines] == ["reading", "red", "safe"]
    assert lines[2] == "safe \\u202etxt"
    reason = str(jobs.find(tmp_path, folder.name, "export").state.reason)
    assert reason.startswith("DataError: ")
    assert not any("\x1b" in said or "\x07" in said or token in said for said in (*lines, reason))


@pytest.mark.parametrize("id", ["../x", "answers-20260101-000000-abcdef", "export-1", ""])
def test_no_other_name_is_a_job(tmp_path: Path, id: str) -> None:
    with pytest.raises(InputNotFoundError):
        jobs.find(tmp_path, id, "answers")
