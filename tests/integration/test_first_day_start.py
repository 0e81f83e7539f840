"""The first day: from `aift` alone to a run, as a newcomer types it."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.support.commands import call, write_run


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PC on which nothing was trained yet."""
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path_factory.mktemp("cache")))


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, and every folder as an empty one."""
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in sorted(folder.rglob("*"))}


def test_a_plan_with_a_pilot_measures_real_steps_and_keeps_nothing(tmp_path: Path, tiny_model_dir: Path, logged):
    config = write_run(tmp_path, tiny_model_dir)
    before = files_below(tmp_path)
    assert call("plan", str(config), "--pilot") == 0
    text = logged()
    assert "by three steps that were tried now" in text
    assert "memory (of three steps)" in text
    assert files_below(tmp_path) == before
    assert call("train", str(config), "--dry-run", "--pilot") == 0
    assert files_below(tmp_path) == before


def test_a_run_after_a_pilot_is_the_run_without_one(tmp_path: Path, tiny_model_dir: Path):
    losses = []
    for name in ("plain", "tried"):
        config = write_run(tmp_path / name, tiny_model_dir, schedule={"max_steps": 2})
        if name == "tried":
            assert call("plan", str(config), "--pilot") == 0
        assert call("train", str(config)) == 0
        metrics = (tmp_path / name / "out" / "metrics.jsonl").read_text(encoding="utf-8")
        losses.append([line.split('"loss": ')[1].split(",")[0] for line in metrics.splitlines() if '"loss"' in line])
    assert losses[0] == losses[1]


def test_the_plan_takes_the_speed_of_the_last_run_like_it_or_says_that_there_is_none(
    tmp_path: Path, tiny_model_dir: Path, logged
):
    config = write_run(tmp_path, tiny_model_dir, schedule={"max_steps": 3})
    assert call("plan", str(config)) == 0
    assert "unknown (no run of this model and method on this PC yet" in logged()
    assert call("train", str(config)) == 0
    assert call("plan", str(config)) == 0
    assert "by the speed of the last such run on this PC" in logged()
    other = write_run(tmp_path, tiny_model_dir).read_text(encoding="utf-8").split("lora:")[0]
    config.write_text(other.replace("method: lora", "method: full"), encoding="utf-8")
    assert call("plan", str(config)) == 0
    assert logged().count("unknown (no run of this model and method") == 2
