"""What the runs of these tests have in common."""

from __future__ import annotations

from dataclasses import replace

import pytest


@pytest.fixture(autouse=True)
def few_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts of runs in this process read six passages of prose instead of 48, which take longer than most runs here."""
    from ai_finetuning.evaluation import run_verdict, tasks

    whole = tasks.prose()
    monkeypatch.setattr(run_verdict, "prose", lambda: replace(whole, items=whole.items[:6]))
