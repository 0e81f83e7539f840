"""Faults for tests that train in this process."""

from __future__ import annotations

import pytest


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch):
    """Sets AIFT_FAULT for this process."""
    from ai_finetuning.engine import faults

    def plan(text: str) -> None:
        faults.reset()
        monkeypatch.setenv("AIFT_FAULT", text)

    return plan
