"""`--plan exact`: what a step will hold, told before it, is what the run's second step holds."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.test_families import folder_of
from tests.support.commands import call, write_run

from ai_finetuning.config.load import load_config
from ai_finetuning.execution.request import request_of
from ai_finetuning.execution.resolve import resolve
from ai_finetuning.execution.simulation import (
    compared,
    with_timeline,
    worst_group,
)
from ai_finetuning.planner.phases import Timeline

STEPS = "training.schedule.max_steps=3"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("AIFT_CACHE", str(folder))
    return folder / "timelines"


@pytest.mark.parametrize(
    "changes",
    [
        ["data.packing=true"],
        pytest.param(["training.gradient_checkpointing=true"], marks=pytest.mark.slow),
    ],
)
def test_the_second_step_holds_what_was_simulated(tiny_model_dir: Path, tmp_path: Path, cache: Path, logged, changes):
    run = write_run(tmp_path, tiny_model_dir)
    assert call("train", str(run), STEPS, *changes, "--plan", "exact") == 0
    (line,) = set(re.findall(r"memory, planned and real \(step 2\): .*", logged()))
    assert [phase for phase in ("forward", "loss", "backward", "optimizer") if f"{phase} " not in line] == []
    assert all(abs(float(off)) < 2 for off in re.findall(r"\(([+-][\d.]+)%\)", line)), line


def test_a_plan_shows_the_phases_and_is_simulated_once(tiny_model_dir: Path, tmp_path: Path, cache: Path, logged):
    run = write_run(tmp_path, tiny_model_dir)
    assert call("plan", str(run)) == 0
    assert "memory (simulated" not in logged()
    assert not cache.exists(), "memory is plenty: nothing was simulated"
    assert call("plan", str(run), "--plan", "exact") == 0
    text = logged()
    assert re.search(r"memory \(simulated, all layers, .*\d s\)", text)
    assert re.search(r"backward +│ #+ [\d.]+ MiB", text)
    assert len(list(cache.iterdir())) == 1
    assert call("plan", str(run), "--plan", "exact") == 0
    assert len(list(cache.iterdir())) == 1
    assert logged().count("memory (simulated, all layers)") == 1, "the second time it is read"
    next(cache.iterdir()).write_text("{}", encoding="utf-8")  # damaged: simulated again
    assert call("plan", str(run), "--plan", "exact") == 0
    assert not (tmp_path / "out").exists()


def test_another_word_is_refused(tiny_model_dir: Path, tmp_path: Path, logged):
    assert call("plan", str(write_run(tmp_path, tiny_model_dir)), "--plan", "perfect") == 64
    assert "auto or exact" in logged()


def test_processes_that_share_layers_need_less(tiny_model_dir: Path, tmp_path: Path, cache: Path):
    """The formula tells every strategy the need of one process; a simulation that of the fullest one."""
    run = write_run(tmp_path, tiny_model_dir, gradient_accumulation_steps=1)
    peaks = {}
    for strategy in ("ddp", "pipeline"):
        changes = [f"parallel.strategy={strategy}", "parallel.processes=2"]
        plan = with_timeline(resolve(request_of(load_config(run, changes), device="cpu")))
        assert plan.summary.timeline is not None
        peaks[strategy] = plan.summary.timeline.peak
        assert plan.summary.timeline.peak <= plan.summary.memory.total - plan.summary.memory.base
    assert peaks["pipeline"] < peaks["ddp"]


@pytest.mark.parametrize(
    "family", ["bloom", "deepseek_v3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_neo", "gpt_oss"))]
)
def test_models_that_take_another_way_have_a_plan(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], logged, family: str
):
    """Models that documents do not suit go over padded rows; experts multiply in groups, whatever their dtype."""
    run = str(write_run(tmp_path, folder_of(tmp_path / "base", family)))
    assert call("plan", run, "--plan", "exact") == 0
    assert "memory (simulated" in capsys.readouterr().out
    assert "told by the formula" not in logged()


def test_what_another_library_holds_is_told_by_the_formula(tiny_model_dir: Path, tmp_path: Path, cache: Path, logged):
    """DeepSpeed, and Accelerate over several processes, keep gradients in their own way; the plan says so."""
    run = write_run(tmp_path, tiny_model_dir)
    plan = resolve(request_of(load_config(run, ["parallel.processes=2"]), device="cpu"))
    request = replace(plan.request, use_accelerate=True)
    for other, name in (
        (replace(plan, request=request), "Accelerate"),
        (replace(plan, parallel=replace(plan.parallel, zero_stage=2)), "DeepSpeed"),
    ):
        assert with_timeline(other).summary.timeline is None
        assert f"a step of {name} is not simulated, so memory is told by the formula" in logged()


def test_the_longest_rows_are_simulated(tiny_model_dir: Path, tmp_path: Path):
    """As many as a micro-batch has, and a second one, where gradients are there already."""
    run = write_run(tmp_path, tiny_model_dir)
    plan = resolve(request_of(load_config(run)))
    group = worst_group(plan)
    longest = sorted(map(len, plan.data.train), reverse=True)[:2]
    assert [batch.row_lengths for batch in group] == [tuple((length,) for length in longest)] * 2
    packed = resolve(request_of(load_config(run, ["data.packing=true"])))
    assert all(sum(row) <= packed.packing_tokens for row in worst_group(packed)[0].row_lengths)


def test_phases_that_are_apart_are_named():
    told = Timeline({"load": 10, "forward": 100, "backward": 100, "clip": 120, "optimizer": 50}, 200)
    text, apart = compared(told, {"load": 10, "forward": 98, "backward": 119, "optimizer": 40})
    assert apart == ["optimizer"]
    assert text.startswith("forward 0.0 MiB / 0.0 MiB (+2.0%), backward")
