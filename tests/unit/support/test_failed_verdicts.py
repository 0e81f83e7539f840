"""A test in which a run's verdict fails unasked fails, wherever the run was."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support import failed_verdicts
from tests.support.ranks import run_ranks

from ai_finetuning.execution.final_verdict import RunVerdict
from ai_finetuning.messages import notice, warn


def fails() -> None:
    """As a run's does, for whatever reason."""
    RunVerdict._fail(object.__new__(RunVerdict), KeyError("data-7"))


def fails_in_a_rank(rank: int) -> None:
    fails()


@pytest.mark.verdict_fails
@pytest.mark.parametrize("language", ["ja", "en"])
def test_it_is_heard(language: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", language)
    notice("判定: なし", "verdict: none")
    warn("ほかの警告", "another warning")
    assert failed_verdicts.FOUND == []
    fails()
    assert len(failed_verdicts.FOUND) == 1
    assert "data-7" in failed_verdicts.FOUND[0]


@pytest.mark.verdict_fails
def test_it_is_heard_from_other_processes(tmp_path: Path):
    run_ranks(1, fails_in_a_rank, folder=tmp_path)
    assert len(failed_verdicts.FOUND) == 1
    failed_verdicts.hear("[aift] saved\n[aift] there is no verdict (KeyError: 'a'); training is not affected\n")
    assert len(failed_verdicts.FOUND) == 2


@pytest.mark.xfail(strict=True, reason="what the guard is for", raises=pytest.fail.Exception)
def test_a_test_that_does_not_ask_for_it_fails():
    fails()
