"""What results say: floors and ceilings, what was kept, vetoes, the decision, and a model against itself."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ai_finetuning.evaluation.adoption import (
    EXIT_CODES,
    Finding,
    Margins,
    decide,
    language_findings,
    task_findings,
)
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.tasks import Item, Task


def task(name: str, count: int, kind: str = "choices", **more: Any) -> Task:
    items = tuple(
        Item(f"{name}-{n}", f"問 {n}", group=f"work {n // 2}" if kind == "prose" else "") for n in range(count)
    )
    return Task(name, name, kind, items, **more)  # type: ignore[arg-type]


def results(*measured: tuple[Task, list[float], list[float]], faults: dict[str, Any] | None = None) -> Results:
    found = Results(None, {})
    for item, before, after in measured:
        for side, scores in (("before", before), ("after", after)):
            found.add(
                {
                    "side": side,
                    "task": item.name,
                    "item": one.name,
                    "score": score,
                    "scores": dict.fromkeys(item.metrics, score),
                    "right_by": {"sum": score, "character": 0, "token": 1},
                    "answer": "答えです。",
                    "faults": (faults or {}).get(side, lambda number: [])(number),
                }
                for number, (one, score) in enumerate(zip(item.items, scores, strict=True))
            )
    return found


def shares(count: int, right: float) -> list[float]:
    return [1.0] * round(count * right) + [0.0] * (count - round(count * right))


DATA = task("data", 100, "answers", metrics=("exact", "char_f1_jglue"))
PROSE = task("prose", 60, "prose")
CHOICES = task("jcommonsenseqa", 1000, chance=0.2)
STILL = [3.7] * 60


def findings(*measured: tuple[Task, list[float], list[float]]) -> dict[str, Finding]:
    tasks = [item for item, _, _ in measured]
    return {item.task.name: item for item in task_findings(results(*measured), tasks, Margins())}


def test_a_task_that_is_learnt_and_prose_that_is_kept_is_taken():
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (PROSE, STILL, [3.71] * 60))
    assert found["data"].word == "improved"
    assert found["data"].p is not None
    assert found["data"].p < 1e-9
    assert found["data"].others == (("char_f1_jglue", 0.0, 0.9),)
    assert found["prose"].word == "kept"
    adoption = decide(list(found.values()), [])
    assert adoption is not None
    assert adoption.decision == "adopt"


def test_a_task_that_is_learnt_while_prose_is_forgotten_is_not_taken():
    noise = np.random.default_rng(0).normal(1.8, 0.3, 60)
    found = findings((DATA, shares(100, 0), shares(100, 0.99)), (PROSE, STILL, (np.array(STILL) + noise).tolist()))
    assert found["prose"].word == "lost"
    assert found["prose"].compared is not None
    assert found["prose"].compared.count == 30  # works, not passages
    adoption = decide(list(found.values()), [])
    assert adoption is not None
    assert adoption.decision == "reject"
    assert "forgotten general Japanese" in adoption.sentence.en
    for way_out in ("learning_rate", "num_epochs", "data.replay: {path: embedded:prose"):
        assert way_out in adoption.sentence.ja
        assert way_out in adoption.sentence.en


def test_what_is_not_shown_to_be_kept_is_not_taken():
    noise = np.random.default_rng(1).normal(0.02, 0.3, 60)
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (PROSE, STILL, (np.array(STILL) + noise).tolist()))
    assert found["prose"].word == "unclear"
    assert "items would tell" in str(found["prose"].why.en if found["prose"].why else "")
    adoption = decide(list(found.values()), [])
    assert adoption is not None
    assert adoption.decision == "hold"
    alone = findings((DATA, shares(100, 0), shares(100, 0.9)))
    assert decide(list(alone.values()), []).decision == "hold"  # type: ignore[union-attr]


def test_two_passages_are_no_ground_to_take_a_model():
    few = task("prose", 2, "prose")
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (few, [3.7] * 2, [3.7] * 2))
    assert found["prose"].word == "unclear"
    assert "約 10 件あれば分かります" in str(found["prose"].why.ja if found["prose"].why else "")
    adoption = decide(list(found.values()), [])
    assert adoption is not None
    assert adoption.decision == "hold"


def test_chance_and_the_ceiling_cannot_be_measured():
    found = findings((CHOICES, shares(1000, 0.215), shares(1000, 0.19)))
    assert found["jcommonsenseqa"].word == "unmeasurable"
    assert "20%" in str(found["jcommonsenseqa"].why.en)  # type: ignore[union-attr]
    assert found["jcommonsenseqa"].p is None
    assert found["jcommonsenseqa"].others == (("accuracy, character", 0, 0), ("accuracy, token", 1, 1))
    found = findings((DATA, shares(100, 0.99), shares(100, 0.98)))
    assert found["data"].word == "unmeasurable"
    found = findings((DATA, shares(100, 0), shares(100, 0)))
    assert found["data"].word == "unmeasurable"
    # One side above chance is enough.
    found = findings((CHOICES, shares(1000, 0.6), shares(1000, 0.2)))
    assert found["jcommonsenseqa"].word == "worse"


def test_beside_own_data_public_sets_are_tested_for_what_was_lost():
    rng = np.random.default_rng(2)
    before = (rng.random(1000) < 0.6).astype(float)
    flips = rng.random(1000) < 0.01
    after = np.where(flips, 1 - before, before)
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (CHOICES, before.tolist(), after.tolist()))
    assert found["jcommonsenseqa"].word == "kept"
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (CHOICES, shares(1000, 0.6), shares(1000, 0.5)))
    assert found["jcommonsenseqa"].word == "lost"
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (CHOICES, shares(1000, 0.2), shares(1000, 0.2)))
    assert found["jcommonsenseqa"].word == "unmeasurable"
    # At the ceiling nothing can improve, and what is there can still be kept.
    found = findings((DATA, shares(100, 0), shares(100, 0.9)), (CHOICES, shares(1000, 1.0), shares(1000, 1.0)))
    assert found["jcommonsenseqa"].word == "kept"


@pytest.mark.parametrize(("rate", "veto"), [(0.2, True), (0.01, False)])
def test_answers_in_english_veto(rate: float, veto: bool):
    measured = results(
        (DATA, shares(100, 0), shares(100, 0.99)),
        (PROSE, STILL, STILL),
        faults={"after": lambda number: ["english"] if number < 100 * rate else []},
    )
    language = language_findings(measured, [DATA, PROSE])
    assert [(item.fault, item.veto) for item in language] == [("english", veto)]
    assert language[0].after == pytest.approx(rate)
    adoption = decide(task_findings(measured, [DATA, PROSE], Margins()), language)
    assert adoption is not None
    assert adoption.decision == ("reject" if veto else "adopt")


def test_refusals_are_told_and_veto_nothing():
    measured = results((DATA, shares(100, 0), shares(100, 0.5)), faults={"after": lambda number: ["refusal"]})
    (found,) = language_findings(measured, [DATA])
    assert found.p < 1e-9
    assert not found.veto


def test_one_side_alone_has_no_verdict():
    measured = Results(None, {})
    measured.add({"side": "after", "task": "prose", "item": item.name, "score": 3.5} for item in PROSE.items)
    (found,) = task_findings(measured, [PROSE], Margins())
    assert found.word == "measured"
    assert found.mean == 3.5
    assert decide([found], []) is None


def test_a_model_against_itself_has_no_difference():
    scores = np.random.default_rng(4).random(60).tolist()
    found = findings(
        (DATA, shares(100, 0.4), shares(100, 0.4)),
        (PROSE, scores, scores),
        (CHOICES, shares(1000, 0.5), shares(1000, 0.5)),
    )
    assert [item.compared.difference for item in found.values() if item.compared] == [0, 0, 0]
    assert found["data"].word == "no difference"
    assert found["prose"].word == found["jcommonsenseqa"].word == "kept"
    assert decide(list(found.values()), []).decision == "hold"  # type: ignore[union-attr]


def looped(faults: list[bool], number: int) -> list[str]:
    return ["loop"] if number < len(faults) and faults[number] else []


def wrong_decisions(runs: int, seed: int) -> tuple[float, float]:
    """Shares of runs of an equally good model in which some task improved, and in which anything was said against it."""
    rng = np.random.default_rng(seed)
    tasks = [task("jnli", 400, chance=0.3), task("jmmlu", 150, chance=0.25), task("instructions", 119, "instructions")]
    prose = task("prose", 60, "prose")
    improved = vetoed = 0
    for _ in range(runs):
        measured, faults = [], rng.random((2, 119)) < 0.05
        for item, right, differ in zip(tasks, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25), strict=True):
            before = (rng.random(len(item.items)) < right).astype(float)
            # A pair of equally good models: an item changes either way with the same probability.
            gain, loss = differ / 2 / (1 - right), differ / 2 / right
            roll = rng.random(len(item.items))
            after = np.where(before == 1, roll >= loss, roll < gain).astype(float)
            measured.append((item, before.tolist(), after.tolist()))
        measured.append((prose, STILL, (np.array(STILL) + rng.normal(0, 0.01, 60)).tolist()))
        looping = [partial(looped, row.tolist()) for row in faults]
        found = results(*measured, faults={"before": looping[0], "after": looping[1]})
        every = [*tasks, prose]
        improved += any(item.word == "improved" for item in task_findings(found, every, Margins()))
        vetoed += any(item.veto for item in language_findings(found, every))
    return improved / runs, vetoed / runs


def test_a_model_as_good_as_before_is_seldom_called_better():
    improved, vetoed = wrong_decisions(20, seed=8)
    assert improved <= 0.15
    assert vetoed <= 0.15


@pytest.mark.slow
def test_false_alarms_of_whole_evaluations():
    """2,000 simulated runs through the same functions as the command's."""
    improved, vetoed = wrong_decisions(2000, seed=9)
    assert improved <= 0.05, improved
    assert vetoed <= 0.05, vetoed


def test_exit_codes():
    assert EXIT_CODES == {"adopt": 0, "reject": 10, "hold": 11}


@pytest.mark.parametrize(
    ("page", "told"), [("README.md", "10 reject (不採用), 11 hold (保留)"), ("README.ja.md", "10 不採用、11 保留")]
)
def test_both_readmes_have_the_exit_codes_of_the_gate(page: str, told: str):
    assert told in (Path(__file__).parents[3] / page).read_text(encoding="utf-8")
