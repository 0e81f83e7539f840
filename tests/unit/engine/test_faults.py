"""Planned faults: one object a run, read from the environment once."""

from __future__ import annotations

import pytest
import torch

from ai_finetuning.engine.faults import Faults


def planned(monkeypatch: pytest.MonkeyPatch, text: str, rank: int = 0) -> Faults:
    monkeypatch.setenv("AIFT_FAULT", text)
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    return Faults.from_environment()


def test_a_fault_happens_at_its_point_and_step_and_as_often_as_it_says(monkeypatch):
    faults = planned(monkeypatch, "step:oom@3x2, save:full@4#2")
    assert faults.inject("step", 2) is None
    assert faults.inject("save", 3) is None
    for _ in range(2):
        with pytest.raises(torch.OutOfMemoryError):
            faults.inject("step", 3)
    assert faults.inject("step", 3) is None
    assert faults.inject("save", 4) is None  # the second file, not the first
    with pytest.raises(OSError, match="No space left"):
        faults.inject("save", 4)


def test_spoiled_steps_follow_each_other(monkeypatch):
    faults = planned(monkeypatch, "step:nan@5x3")
    assert [faults.inject("step", step) for step in (4, 5, 6, 7, 8)] == [None, "nan", "nan", "nan", None]


def test_a_fault_of_one_rank_is_no_other_ranks(monkeypatch):
    assert planned(monkeypatch, "step:spike@1%1", rank=0).inject("step", 1) is None
    assert planned(monkeypatch, "step:spike@1%1", rank=1).inject("step", 1) == "spike"


def test_the_environment_is_read_once_and_every_run_has_its_own_plan(monkeypatch):
    first = planned(monkeypatch, "step:spike@1")
    second = Faults.from_environment()
    monkeypatch.delenv("AIFT_FAULT")
    assert first.inject("step", 1) == "spike"
    assert first.inject("step", 1) is None
    assert second.inject("step", 1) == "spike"
    assert Faults.from_environment().inject("step", 1) is None


def test_an_entry_that_cannot_be_read_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="save:kill@20"):
        planned(monkeypatch, "step-kill-3")
