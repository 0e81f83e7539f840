"""Which rows the verdict of a run asks, in which order and how many; what a run's files say of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from tests.support.models import build_model, build_tokenizer

from ai_finetuning.data.example import Example
from ai_finetuning.evaluation import run_verdict
from ai_finetuning.evaluation.before_after import Loaded, Plan, Side
from ai_finetuning.evaluation.results import Results
from ai_finetuning.evaluation.run_verdict import (
    Clock,
    decision_line,
    measure_within,
    measured_on,
    outcome_of,
    run_tasks,
)
from ai_finetuning.evaluation.tasks import Item, Task

SIDES = (Side("before", "base", "base", adapter=False), Side("after", "base", "base"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


def row(tokenizer: Any, text: str, answers: Sequence[str]) -> Example:
    """A row whose label tokens are those of some answers, one behind the other turn."""
    ids: list[int] = []
    labels: list[int] = []
    for number, answer in enumerate(answers):
        asked = tokenizer.encode(f"<|user|>\n{text}{number}\n<|assistant|>\n", add_special_tokens=False)
        given = tokenizer.encode(answer, add_special_tokens=False)
        ids += [*asked, *given]
        labels += [*[-100] * len(asked), *given]
    return Example(np.asarray(ids, dtype=np.int32), np.asarray(labels, dtype=np.int32))


def test_rows_are_asked_their_last_question_in_an_order_of_their_own(tokenizer: Any):
    config = build_model().config
    rows = [row(tokenizer, f"質問{n}は？", ["はい。", f"答え{n}です。"]) for n in range(6)]
    (data, general), count = run_tasks(rows, tokenizer, config)
    assert count == 6
    assert data.kind == "answers"
    assert data.title == "data.eval"
    assert {item.accepted for item in data.items} == {(f"答え{n}です。",) for n in range(6)}
    by_name = {item.name: item for item in data.items}
    assert by_name["data-3"].accepted == ("答え2です。",)  # its place in the data
    ids = by_name["data-1"].ids
    assert tokenizer.decode(list(ids)).endswith("<|assistant|>\n")
    assert list(ids) == rows[0].input_ids[: len(ids)].tolist()
    (turned, _), _ = run_tasks(rows[::-1], tokenizer, config)
    assert [item.ids for item in turned.items] == [item.ids for item in data.items]
    fewer = [item.ids for item in run_tasks(rows[:4], tokenizer, config)[0][0].items]
    assert fewer == [item.ids for item in data.items if item.ids in fewer]  # no other row moves
    assert len(general.items) == 48
    assert [item.name for item in general.items] != sorted(item.name for item in general.items)


def test_plain_texts_alone_are_scored_and_no_answer_is_no_question(tokenizer: Any):
    config = build_model().config
    ids = np.asarray(tokenizer.encode("むかしむかし、あるところに。", add_special_tokens=False), dtype=np.int32)
    plain = Example(ids, ids.copy())
    (data, _), count = run_tasks([plain], tokenizer, config)
    assert (data.kind, data.lower, count) == ("prose", True, 1)
    assert data.items[0].text == "むかしむかし、あるところに。"
    (mixed, _), count = run_tasks([plain, row(tokenizer, "首都は？", ["東京です。"])], tokenizer, config)
    assert (mixed.kind, count) == ("answers", 1)
    long = row(tokenizer, "長い質問。" * 400, ["はい。"])
    tasks, count = run_tasks([long], tokenizer, config)
    assert ([task.name for task in tasks], count) == (["prose"], 0)


class Time:
    """A clock that moves where something is measured: so many seconds an item, on each side."""

    def __init__(self, seconds: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds, self.moment, self.asked = seconds, 0.0, list[tuple[str, int]]()
        monkeypatch.setattr(run_verdict, "measure", self.measure)

    def measure(self, planned: Plan, results: Results, loaded: Loaded) -> None:
        (task,) = planned.tasks
        for side in planned.sides:
            there = results.complete(side.key, task)
            new = [item for item in task.items if item.name not in there]
            self.moment += self.seconds[task.name] * len(new)
            results.add({"side": side.key, "task": task.name, "item": item.name, "score": 0.5} for item in new)
        self.asked.append((task.name, len(task.items)))


def tasks_of(first: int, second: int) -> tuple[Task, Task]:
    """Two tasks that are scored in bits, the first under the name of the user's."""
    return (
        Task("data", "data.eval", "prose", tuple(Item(f"data-{n}", "文") for n in range(first))),
        Task("prose", "prose", "prose", tuple(Item(f"work:{n}", "文", group=str(n)) for n in range(second))),
    )


def counts_of(tasks: tuple[Task, ...], results: Results) -> dict[str, int]:
    return {task.name: len(task.items) for task in measured_on(["before", "after"], tasks, results)}


def test_a_limit_of_time_limits_the_rows_of_all_tasks_alike(monkeypatch: pytest.MonkeyPatch):
    clock, tasks, results = Time({"data": 1.0, "prose": 0.5}, monkeypatch), tasks_of(100, 40), Results(None)
    said: list[Any] = []
    limit = Clock.of(60, now=lambda: clock.moment)
    measure_within(SIDES, tasks, results, Loaded(), limit, lambda *told: said.append(told))
    counts = counts_of(tasks, results)
    assert clock.moment <= 60
    assert 20 <= counts["data"] < 30
    assert abs(counts["data"] / 100 - counts["prose"] / 40) < 0.15
    ((expected, seconds),) = said  # six items of each are measured by then, in 18 seconds
    assert abs(expected["data"] - counts["data"]) <= 4
    assert seconds == pytest.approx(42)
    names = [item.name for item in measured_on(["after"], tasks, results)[0].items]
    assert names == [item.name for item in tasks[0].items[: counts["data"]]]
    left = outcome_of(SIDES, measured_on(["before", "after"], tasks, results), results)
    assert {finding.task.name: len(finding.task.items) for finding in left.findings} == counts


def test_enough_time_measures_all_and_no_time_a_pilot(monkeypatch: pytest.MonkeyPatch):
    for seconds, wanted in ((1000.0, {"data": 30, "prose": 10}), (0.0, {"data": 2, "prose": 2})):
        clock, results, tasks = Time({"data": 1.0, "prose": 1.0}, monkeypatch), Results(None), tasks_of(30, 10)
        measure_within(SIDES, tasks, results, Loaded(), Clock.of(seconds, now=lambda clock=clock: clock.moment))
        assert counts_of(tasks, results) == wanted


def test_a_pilot_on_a_busy_machine_does_not_end_a_task(monkeypatch: pytest.MonkeyPatch):
    """The demo was told "2 of 669 items" where its first two answers met a machine that did something else."""
    clock, results, tasks = Time({"data": 15.0, "prose": 0.5}, monkeypatch), Results(None), tasks_of(100, 10)
    measure, quick = clock.measure, {"data": 0.25, "prose": 0.5}

    def then_quick(planned: Plan, results: Results, loaded: Loaded) -> None:
        measure(planned, results, loaded)
        clock.seconds = quick

    monkeypatch.setattr(run_verdict, "measure", then_quick)
    measure_within(SIDES, tasks, results, Loaded(), Clock.of(120, now=lambda: clock.moment))
    assert counts_of(tasks, results) == {"data": 100, "prose": 10}
    assert clock.moment <= 120


def test_what_is_there_costs_nothing_again_and_a_signal_ends_it(monkeypatch: pytest.MonkeyPatch):
    clock, results, tasks = Time({"data": 1.0, "prose": 1.0}, monkeypatch), Results(None), tasks_of(30, 10)
    calls = iter([False, False, False, True])
    measure_within(SIDES, tasks, results, Loaded(), Clock.of(1000, now=lambda: clock.moment, stops=lambda: next(calls)))
    assert len(clock.asked) == 3
    before = clock.moment
    measure_within(SIDES, tasks, results, Loaded(), Clock.of(1000, now=lambda: clock.moment))
    assert counts_of(tasks, results) == {"data": 30, "prose": 10}
    assert clock.moment == 2 * 40.0
    assert before < clock.moment


def test_a_verdict_as_one_line():
    told = {
        "result": "reject",
        "why": {"ja": "忘れています。", "en": "it forgot."},
        "advice": {"ja": "対処。", "en": "Do."},
    }
    line = decision_line(told)
    assert line is not None
    assert (line.ja, line.en) == ("不採用 - 忘れています。対処。", "reject - it forgot. Do.")
    assert decision_line({"result": None, "why": {"ja": "", "en": ""}}) is None
