"""Faults for tests that train in this process."""

from __future__ import annotations

import pytest


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch):
    """Sets AIFT_FAULT for the runs that begin in this process from now on."""

    def plan(text: str) -> None:
        monkeypatch.setenv("AIFT_FAULT", text)

    return plan
