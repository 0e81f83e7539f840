"""What simulations change of a choice: a cheaper cut that the formula did not believe in, or a refusal with the numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from tests.support.commands import write_run

from ai_finetuning.config.load import load_config
from ai_finetuning.errors import ConfigError
from ai_finetuning.execution import settle
from ai_finetuning.execution.request import request_of
from ai_finetuning.execution.resolve import RunPlan, resolve
from ai_finetuning.planner.cuts import Choice, Cut
from ai_finetuning.planner.gpus import CARDS, Gpus

ROWS = ["training.batch_size=4", "training.gradient_accumulation_steps=4"]
FREE = ["batch_size", "gradient_accumulation_steps", "gradient_checkpointing"]


@pytest.fixture
def plan_on(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunPlan]:
    """The plan of a tiny run on a card of so many bytes, with only what is given set."""
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    monkeypatch.setenv("AIFT_CACHE", str(cache))
    run = write_run(tmp_path, tiny_model_dir)
    values = yaml.safe_load(run.read_text(encoding="utf-8"))
    values["training"] = {name: value for name, value in values["training"].items() if name not in FREE}
    run.write_text(yaml.safe_dump(values), encoding="utf-8")

    def made(size: float, *settings: str, count: int = 1) -> RunPlan:
        card = replace(CARDS["4090"], memory_gib=size / 2**30)
        config = load_config(run, list(settings))
        return resolve(replace(request_of(config), elsewhere=Gpus(card, count)))

    return made


def choice_of(plan: RunPlan) -> Choice:
    assert plan.summary.choice is not None
    return plan.summary.choice


@pytest.fixture
def between(plan_on: Callable[..., RunPlan]) -> float:
    """A card on which the formula says that only checkpointing fits."""
    every = choice_of(plan_on(2**34))
    sizes = {item.cut: item.needed for item in (every.chosen, *every.others)}
    return (sizes[Cut(4, 4, False)] + sizes[Cut(4, 4, True)]) / 2 / 0.8


def test_checkpointing_goes_where_a_simulated_step_fits_without_it(plan_on: Callable[..., RunPlan], between: float):
    """The formula counts what libraries take, which is not free on a GPU any more."""
    plan = plan_on(between, *ROWS)
    assert choice_of(plan).chosen.cut == Cut(4, 4, True)
    assert [item.cut for item in choice_of(plan).hopeful()] == [Cut(4, 4, False)]
    final = settle.settled(plan)
    chosen = choice_of(final).chosen
    assert (chosen.cut, chosen.simulated, chosen.fits) == (Cut(4, 4, False), True, True)
    assert final.summary.timeline is not None
    assert chosen.needed == final.summary.timeline.reserved
    assert final.derived.gradient_checkpointing is final.summary.gradient_checkpointing is False
    assert choice_of(plan).chosen in choice_of(final).others
    shown = final.summary.table()
    labels = [label for label, _ in shown]
    assert "(simulated)" in dict(shown)["chosen cut"]
    assert labels[labels.index("chosen cut") + 1] == "runners-up"
    assert dict(shown)["calibration"].startswith("none")
    assert any("reserved; not calibrated" in value for _, value in shown)


def test_what_the_user_gave_is_simulated_and_stays(plan_on: Callable[..., RunPlan], between: float):
    given = ["training.gradient_checkpointing=true", "training.batch_size=4"]
    final = settle.settled(plan_on(between, *given))
    assert final.derived.gradient_checkpointing
    assert choice_of(final).chosen.simulated


def test_what_fits_by_no_simulation_is_refused_with_the_numbers(plan_on: Callable[..., RunPlan]):
    plan = plan_on(2**18)
    with pytest.raises(ConfigError, match=r"batch 1 x 16, checkpointing: .*\(simulated\) \(does not fit\)") as refusal:
        settle.settled(plan)
    assert "self-check" in refusal.value.en
    assert "収まりません" in refusal.value.ja or "does not fit" in refusal.value.ja
    final = settle.settled(plan_on(2**18, *ROWS, "training.gradient_checkpointing=true"))
    assert not final.summary.fits, "obeyed, and warned of"


def test_one_line_tells_what_was_chosen(plan_on: Callable[..., RunPlan], logged):
    settle.tell_choice(plan_on(2**34))
    (line,) = re.findall(r"chosen cut: .*", logged())
    assert line.startswith("chosen cut: batch ")
    assert "Runners-up: " in line
    assert line.count(" GiB") == 4
    (second,) = re.findall(r"calibration of the GPU: .*", logged())
    assert "none (aift gpu self-check" in second
    assert "up to 12.8 GiB" in second
    assert "not measured" in second
    before = logged()
    settle.tell_choice(plan_on(2**34, "training.batch_size=4", "training.gradient_checkpointing=false"))
    assert logged().count("chosen cut") == before.count("chosen cut")


def test_auto_takes_a_strategy_that_only_a_simulation_believes_in(plan_on: Callable[..., RunPlan]):
    """On two cards as small as that the formula finds nothing that fits."""
    asked = ["parallel.strategy=auto"]
    everything = choice_of(plan_on(2**34, *asked, count=2))
    least = min(item.needed for item in (everything.chosen, *everything.others))
    plan = plan_on(0.95 * least / 0.8, *asked, count=2)
    assert not choice_of(plan).chosen.fits
    final = settle.settled(plan)
    chosen = choice_of(final).chosen
    assert chosen.fits
    assert chosen.simulated
    assert chosen.strategy == final.parallel.strategy
    assert chosen.processes == final.summary.processes
