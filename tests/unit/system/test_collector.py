"""The collector of cycles is held back while libraries are imported, and in a process of aift only."""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.commands import call

from ai_finetuning.apps.cli import main
from ai_finetuning.models.loading import load_causal_lm
from ai_finetuning.planner import simulate
from ai_finetuning.system import collector


@pytest.fixture
def usual() -> Iterator[tuple[int, int, int]]:
    found = gc.get_threshold()
    yield found
    collector.as_usual()
    gc.set_threshold(*found)
    gc.unfreeze()


def test_a_model_that_is_loaded_is_collected_as_usual(usual: tuple[int, int, int], tiny_model_dir: Path):
    collector.hold_back()
    assert gc.get_threshold()[0] == collector.AT_START
    load_causal_lm(str(tiny_model_dir))
    assert gc.get_threshold() == usual
    assert gc.get_freeze_count() > 0


def test_a_simulated_step_is_collected_as_usual(usual: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch):
    """Its bytes are those of the run, which frees tensors in cycles as Python does."""
    collector.hold_back()
    collector.hold_back()
    monkeypatch.setattr(simulate, "_spans", lambda _: sys.exit(repr(gc.get_threshold())))
    with pytest.raises(SystemExit, match=re.escape(repr(usual))):
        simulate.simulate_devices(None, [])  # type: ignore[arg-type]


def test_a_program_that_imports_the_package_keeps_its_own(usual: tuple[int, int, int], tiny_model_dir: Path):
    collector.as_usual()
    load_causal_lm(str(tiny_model_dir))
    assert call("version") == 0
    assert (gc.get_threshold(), gc.get_freeze_count()) == (usual, 0)


def test_a_command_holds_it_back_and_leaves_without_it(usual: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch):
    seen = []
    monkeypatch.setattr(sys, "argv", ["aift", "version"])
    monkeypatch.setattr(main, "run", lambda _: seen.append(gc.get_threshold()[0]) or 7)
    with pytest.raises(SystemExit) as left:
        main.main()
    assert (seen, left.value.code) == ([collector.AT_START], 7)
    assert gc.get_freeze_count() > 0
