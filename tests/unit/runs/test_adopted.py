"""Runs in use: what the mark holds for, what it keeps out of the trash, and what a verdict has against a model."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from tests.support.kept_runs import contents, kept_run

from ai_finetuning.errors import ConfigError, RunLockedError
from ai_finetuning.evaluation.returned import take_best, take_last
from ai_finetuning.runs.adopted import adopt, adopted_before, adopted_since, doubt_of, release
from ai_finetuning.runs.folder import read_run
from ai_finetuning.runs.listing import adopted_first, list_runs, rename, trash
from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.process import identity


def test_a_run_in_use_is_listed_as_such_and_comes_first(tmp_path: Path):
    for name in ("a", "b", "c"):
        kept_run(tmp_path / name)
    before = contents(tmp_path / "a")
    adopt(tmp_path / "a")
    adopt(tmp_path / "b")
    entries = list_runs(tmp_path)
    assert {entry.id for entry in entries if entry.adopted is not None} == {"a", "b"}
    assert [entry.id for entry in adopted_first(entries)][:2] == ["b", "a"]  # the one marked last first
    release(tmp_path / "b")
    assert [entry.id for entry in adopted_first(list_runs(tmp_path)) if entry.adopted is not None] == ["a"]
    release(tmp_path / "a")
    assert contents(tmp_path / "a") == before
    with pytest.raises(ConfigError, match="aift runs adopt"):
        release(tmp_path / "a")


def test_the_trash_refuses_a_run_in_use_until_it_is_out_of_use(tmp_path: Path):
    run = kept_run(tmp_path / "outputs" / "faq")
    adopt(run)
    for force in (False, True):
        with pytest.raises(ConfigError, match=r"aift runs adopt .*faq --undo"):
            trash(run, force=force)
    run = rename(run, "faq2")
    assert adopted_since(read_run(run)) is not None
    release(run)
    assert trash(run).is_dir()


def test_the_mark_is_of_weights_and_holds_while_they_are_the_result(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    adopt(run)
    marked = read_run(run)["adopted"]
    take_best(run)
    assert adopted_since(read_run(run)) is None
    assert adopted_before(read_run(run)) == 8
    take_last(run)
    assert adopted_since(read_run(run)) == marked["since"]
    assert adopted_before(read_run(run)) is None
    change_run(run, status="running", phase=None)  # resumed: the model stays until the new one is saved
    assert adopted_since(read_run(run)) is not None
    change_run(run, status="completed", result={"steps": 16, "saved_step": 16})  # the longer training has ended
    assert adopted_since(read_run(run)) is None
    assert adopted_before(read_run(run)) == 8


def test_what_cannot_be_adopted(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    with FileLock(str(run / ".lock")), pytest.raises(RunLockedError):
        adopt(run)
    (run / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match="aift resume"):
        adopt(run)
    with pytest.raises(RunLockedError):
        adopt(kept_run(tmp_path / "busy", status="running", **identity()))
    with pytest.raises(ConfigError, match="aift resume"):
        adopt(kept_run(tmp_path / "stopped", status="stopped", result=None))


def test_a_run_whose_model_was_deleted_can_still_be_taken_out_of_use(tmp_path: Path):
    run = kept_run(tmp_path / "run")
    adopt(run)
    (run / "adapter_model.safetensors").unlink()
    release(run)
    trash(run)


@pytest.mark.parametrize(
    ("verdict", "ja"),
    [
        ({"result": "adopt", "why": {"ja": "良い", "en": "good"}}, None),
        ({"result": "hold", "why": {"ja": "差は見えません。", "en": "none."}}, "判定は保留です。差は見えません。"),
        ({"result": "reject", "why": {"ja": "悪化。", "en": "worse."}}, "判定は不採用です。悪化。"),
        ({"result": None, "pending": True}, "まだ判定していません。"),
        (
            {"result": None, "why": {"ja": "評価データがありません。", "en": "x"}},
            "判定はありません。評価データがありません。",
        ),
        ([], "判定はありません。"),
        ({"result": "x" * 9, "why": "y"}, "判定はありません。"),
    ],
)
def test_the_doubt_is_the_verdicts_own(tmp_path: Path, verdict: Any, ja: str | None):
    run = kept_run(tmp_path / "run", verdict=verdict, host=socket.gethostname())
    found = adopt(run)
    assert (found.ja if found else None) == ja
    assert found is None or found.en
    assert doubt_of(read_run(run)) == found


def test_a_mark_of_anybodys_is_only_read(tmp_path: Path):
    for mark in (1, "x", [], {}, {"step": "8"}, {"step": 8}, {"step": 8, "since": "x"}, {"step": None, "since": 1}):
        run = kept_run(tmp_path / json.dumps(mark).encode().hex(), adopted=mark)
        assert adopted_since(read_run(run)) in (None, 0.0)
    assert len(list_runs(tmp_path)) == 8
