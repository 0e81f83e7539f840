"""What every test with several ranks needs."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _unused_accelerate():
    """Ranks are forked: as in a fresh process, Accelerate has not counted processes yet."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
