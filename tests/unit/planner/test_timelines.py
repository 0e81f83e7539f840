"""Simulated steps are kept for the code that they were simulated with."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from tests.support.tracked import batch

from ai_finetuning.planner.phases import Timeline
from ai_finetuning.planner.timelines import code_digest, remembered

TOLD = [
    Timeline({"load": 5, "backward": 10}, 20, (2, 4), ("one::kernel",), device=0),
    Timeline({"load": 4, "backward": 9}, 18, (2, 4), (), device=1),
]


def test_every_device_is_kept_and_edited_code_is_simulated_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    tmp_path.chmod(0o700)
    made: list[int] = []

    def simulated() -> list[Timeline]:
        made.append(1)
        return TOLD

    for _ in range(2):
        assert remembered({"model": "a"}, [batch(1, 8)], simulated) == TOLD
    assert len(made) == 1
    monkeypatch.setattr("ai_finetuning.planner.timelines.code_digest", lambda: "edited")
    remembered({"model": "a"}, [batch(1, 8)], simulated)
    assert len(made) == 2


def test_the_mark_of_the_code_follows_an_edit_of_any_file(tmp_path: Path):
    file = tmp_path / "kernels" / "inner" / "cpu.cpp"
    file.parent.mkdir(parents=True)
    marks = set()
    for text, stamp in (("int a;", 1), ("int b;", 2), ("int abc;", 2)):
        file.write_text(text, encoding="utf-8")
        os.utime(file, ns=(stamp, stamp))
        code_digest.cache_clear()
        marks.add(code_digest(tmp_path))
    (tmp_path / "kernels" / "__pycache__").mkdir()
    (tmp_path / "kernels" / "__pycache__" / "cpu.pyc").write_bytes(b"compiled")
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps" / "cli.py").write_text("", encoding="utf-8")
    code_digest.cache_clear()
    marks.add(code_digest(tmp_path))
    assert len(marks) == 3, "what a step does not run changes nothing"


def test_it_costs_next_to_nothing():
    code_digest.cache_clear()
    began = time.process_time()
    code_digest()
    assert time.process_time() - began < 0.02
    assert code_digest.cache_info().currsize == 1
