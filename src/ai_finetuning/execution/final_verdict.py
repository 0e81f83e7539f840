"""The verdict of a run against its base, as it is measured: before the first step where the base will be gone at the end,
and behind the save, so that no trained weights wait for it.

Nothing that a run computes depends on it: weights, modes, flags and random states are afterwards what they were.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..config.run_folder import EVAL, METRICS, REPORT
from ..data.example import Example
from ..engine.hooks import SignalFlags
from ..engine.loop import last_checkpoint
from ..engine.metrics import MetricsFile, bits_per_character, read_metrics
from ..errors import ConfigError, Reason
from ..evaluation.before_after import Loaded, Side, in_single_precision
from ..evaluation.before_after_report import Outcome, result_lines
from ..evaluation.likelihood import Likelihood
from ..evaluation.report import with_verdict
from ..evaluation.results import Results
from ..evaluation.run_verdict import (
    PILOT,
    TITLE,
    Clock,
    Tasks,
    card_section,
    has_improved,
    made_by,
    measure_within,
    measured_on,
    metrics_row,
    outcome_of,
    plain_verdict,
    run_tasks,
    scored_texts,
)
from ..evaluation.samples import untouched
from ..evaluation.spread_likelihood import SpreadLikelihoods, why_no_answers
from ..evaluation.tasks import Task
from ..inference.session import OpenModel
from ..messages import argument, described, notice, warn
from ..models.adapters import without_adapter
from ..models.parts import positions_of, unwrapped
from ..parallel.processes import launched
from ..planner.length import time_limit
from ..planner.speed import duration
from ..system.files import write_in_place
from .build import Built
from .output_folder import OutputFolder
from .reporting import few_steps_unless_better
from .resolve import RunPlan

_CARD = "README.md"
# Seconds for which other processes may wait for the main one; they give up after half an hour.
MOST_WAITED = 600.0


def why_none(plan: RunPlan) -> Reason | None:
    """Why a run has no verdict; None where it has one."""
    if plan.request.config.method == "pretrain":
        return Reason("事前学習には比べる相手がありません。", "pretraining has nothing to compare with.")
    if not plan.data.eval_data:
        return Reason("評価データがありません。", "there is no evaluation data.")
    if not plan.request.config.training.evaluation.verdict:
        return Reason(
            "設定により行いません（training.evaluation.verdict=false）。",
            "not asked for (training.evaluation.verdict=false).",
        )
    if plan.parallel.in_parts and not plan.request.full and plan.request.config.lora.bias != "none":
        return Reason(
            f"{plan.parallel.strategy} では、学習したバイアス（lora.bias）をベースモデルの値に戻して測れません。aift eval で測れます。",
            f"{plan.parallel.strategy} cannot put the base's values in the place of trained biases (lora.bias); "
            "aift eval measures it.",
        )
    return None


def verdict_line(plan: RunPlan) -> Reason | None:
    """What the plan says of the verdict; None where there is none."""
    if why_none(plan) is not None:
        return None
    rows, most = len(plan.data.eval_data), duration(time_limit(plan.summary.training_seconds))
    texts = Reason("", "")
    if plan.request.config.training.runtime.report_samples:
        texts = Reason(f"。問いと答えは {EVAL} に入ります", f"; questions and answers go into {EVAL}")
    return Reason(
        f"最後に学習前と比べて判定します（評価データ {rows:,} 行と一般の文章、長くて {most}{texts.ja}）",
        f"compared with its base at the end ({rows:,} evaluation rows and general prose, {most} at most{texts.en})",
    )


class RunVerdict:
    """The verdict of one run, in each of its processes; what it says, the main process says.

    Args:
        plan: of the run.
        folder: of the run.
        config: the model's.

    Attributes:
        why_none: why there is no verdict.
        improved: whether it has said that something got better.
    """

    def __init__(self, plan: RunPlan, folder: OutputFolder, config: Any) -> None:
        self.why_none = why_none(plan)
        self._wanted = self.why_none is None  # the same in every process, whatever fails in one of them
        self.improved = False
        self._plan, self._folder, self._full = plan, folder, plan.request.full
        # Whether what the run is compared with is there before its first step only: weights that all train; or, of pairs and
        # marked answers, the adapter that training goes on from, which is their reference (docs/preference.md).
        asked = plan.request.config
        self._gone = self._full or (asked.objective != "sft" and asked.lora.adapter is not None)
        self._in_parts = plan.parallel.in_parts
        self._several = plan.parallel.processes > 1 or self._in_parts
        self._config = config
        self._positions = positions_of(config)
        self._seconds = 0.0
        before = folder.run().get("verdict")
        self._step = before.get("step") if isinstance(before, Mapping) else None

    @cached_property
    def _tasks(self) -> Tasks:
        """What is asked; of a run of several processes also what is not measured."""
        rows: Sequence[Example] = self._plan.data.eval_data
        system = self._plan.request.config.data.system_prompt or self._plan.data.report.system
        return run_tasks(rows, self._plan.tokenizer, self._config, system)[0]

    @property
    def _measured(self) -> Tasks:
        """The tasks that this run can be asked."""
        return tuple(task for task in self._tasks if not self._several or task.kind == "prose")

    def _limit(self, seconds: float) -> float:
        """Most seconds; other processes wait for this one, and not for ever."""
        return min(time_limit(seconds), MOST_WAITED) if self._several else time_limit(seconds)

    @property
    def pending(self) -> dict[str, Any]:
        """run.json's `verdict` while there is none yet, or why there will be none."""
        if self.why_none is not None:
            return {"result": None, "why": {"ja": self.why_none.ja, "en": self.why_none.en}}
        return {"result": None, "pending": True}

    def _sides(self) -> list[Side]:
        name = self._plan.source.name
        after = Side("after", name, name)
        return [Side("before", name, name, adapter=self._gone), after]

    def _open(self) -> Results:
        """The rows that there are; those of another run of this folder are none."""
        path = self._folder.path / EVAL
        texts = self._plan.request.config.training.runtime.report_samples > 0
        made = made_by(self._tasks, {"method": self._plan.request.config.effective_method})
        try:
            return Results.open(path, made, texts=texts)
        except ConfigError:
            return Results.open(path, made, restart=True, texts=texts)

    def before_training(self, built: Built) -> None:
        """Scores the base of a run that changes all weights, before its first step; every process has to call it."""
        if self.why_none is not None or not self._gone or built.run.state.step > 0:
            return
        limit = self._limit(self._plan.summary.training_seconds) / 2
        if self._in_parts:
            self._score_spread(built, limit)
        if self._in_parts or not launched().is_main:
            return
        notice("判定のため、学習前のモデルを測ります。", "measuring the model before training, for the verdict.")
        with self._survives(), contextlib.nullcontext() if built.path is None else built.path.paused():
            self._measure(built.model, self._sides()[:1], self._measured, self._open(), Clock.of(limit))

    def after_steps(self, built: Built) -> None:
        """Scores a model whose parts lie in several processes by its strategy; every process has to call it.

        Its last checkpoint, from which it is saved, is taken before.
        """
        run = built.run
        if not self._wanted or not self._in_parts or any(run.strategy.gather(self.why_none is not None)):
            return
        last_checkpoint(run)
        if self._plan.request.config.training.checkpoint.load_best and run.state.best_step not in (
            None,
            run.state.step,
        ):
            self.why_none = Reason(
                "複数のプロセスでは、最後の重みだけを測れます（保存するのは最良の重みです）。",
                "several processes can only measure the last weights, and the best ones are saved.",
            )
            return
        self._score_spread(built, self._limit(run_seconds(self._folder.path)))

    def _score_spread(self, built: Built, limit: float) -> None:
        """Likelihoods of the sides that are there now, on all processes; the main one keeps them."""
        began, strategy = time.monotonic(), built.run.strategy
        tasks: list[Task] = []
        with self._survives():
            tasks = list(self._measured)
        if self.why_none is not None:  # the same in every process
            return
        after, results = built.run.state.step > 0, Results(None)
        if strategy.is_main:
            with self._survives():
                results = self._open()
                if after:
                    results.forget("after")
        sides = [side for side in self._sides() if (side.key == "after") == after or not self._gone]
        if self._gone and after:
            names = strategy.gather(
                [item.name for task in measured_on(["before"], tuple(tasks), results) for item in task.items]
            )[0]
            tasks = [_only(task, set(names)) for task in tasks]
        for task in tasks:
            first = _first(task, PILOT)
            started = time.monotonic()
            if not self._spread_rows(built, sides, first, results):
                return
            cost = (time.monotonic() - started) / max(1, len(first.items))
            room = (limit - (time.monotonic() - began)) / len(tasks)
            count = len(task.items) if self._gone and after else PILOT + int(max(0.0, room) / max(cost, 1e-6))
            if not self._spread_rows(built, sides, _first(task, strategy.gather(count)[0]), results):
                return
        self._seconds += time.monotonic() - began

    def _spread_rows(self, built: Built, sides: Sequence[Side], task: Task, results: Results) -> bool:
        """Scores the items of a task on all processes; False, in all of them, where one could not."""
        texts = scored_texts(task, self._plan.tokenizer, self._positions)
        found = SpreadLikelihoods([part for parts in texts for part in parts])
        strategy = built.run.strategy
        assert built.slot is not None
        for side in sides:
            scores: Iterator[Likelihood] = iter(())
            with self._survives(), untouched(built.model), self._on(built.model, side):
                with built.slot.using(found.predictions):
                    scores = iter(found.score(strategy, batch_size=1, pad_token_id=self._plan.tokenizer.pad_token_id))
            if any(strategy.gather(self.why_none is not None)):
                if self.why_none is None:
                    self._fail(RuntimeError("another process could not score its part"))
                return False
            if not strategy.is_main:
                continue
            rows = []
            for item, parts in zip(task.items, texts, strict=True):
                nats = sum(next(scores).nats for _ in parts)
                bits = bits_per_character(-nats, parts[0].characters if parts else 0)
                values = {"score": bits or 0.0, "nats": nats, "characters": parts[0].characters if parts else 0}
                rows.append({"side": side.key, "task": task.name, "item": item.name, **values, "work": item.group})
            with self._survives():
                results.add(row for row in rows if row["item"] not in results.of(side.key, task.name))
        return True

    @contextlib.contextmanager
    def _survives(self) -> Iterator[None]:
        """What no run is lost for, and no other process waits for. Whatever is raised ends the verdict with its reason: a
        library's code on a user's model and rows, the memory, the disk; no list of kinds would hold them all. In tests such
        an end is a failure (tests/conftest.py).
        """
        try:
            yield
        except Exception as error:
            self._fail(error)

    def _on(self, model: Any, side: Side) -> contextlib.AbstractContextManager[None]:
        return without_adapter(model) if not side.adapter else contextlib.nullcontext()

    def finish(self, model: Any, step: int, seconds: float) -> None:
        """Measures what is left of the saved model, and writes the verdict wherever the run is told of.

        Args:
            step: of the weights.
            seconds: of the training.
        """
        if self.why_none is not None:
            self._folder.write_run(verdict=self.pending)
            return
        self._folder.write_run(verdict=self.pending | {"step": step})
        with self._survives():
            self._finish(model, step, seconds)
            return
        self._folder.write_run(verdict=self.pending)

    def _fail(self, error: Exception) -> None:
        reason = described(error, for_files=True)[:300]
        warn(
            f"判定できませんでした（{reason}）。学習には影響しません。aift eval で測れます。",
            f"there is no verdict ({reason}); training is not affected, and aift eval measures it.",
        )
        self.why_none = Reason(f"測れませんでした（{reason}）。", f"it could not be measured ({reason}).")

    def _finish(self, model: Any, step: int, seconds: float) -> None:
        began, results, sides = time.monotonic(), self._open(), self._sides()
        if not self._in_parts and step != self._step and results.of("after", "prose"):
            results.forget("after")
        tasks = measured_on(["before"], self._measured, results) if self._gone else self._measured
        if not self._in_parts and tasks:
            with SignalFlags() as signals:
                stops = self._stops(step, signals)
                clock = Clock.of(self._limit(seconds) / (2 if self._gone else 1), stops=stops)
                self._measure(model, sides, tasks, results, clock)
            if signals.stop is not None:
                command = f"aift resume {argument(self._folder.path)}"
                warn(
                    f"モデルは保存しましたが、判定は途中で止めました。続きから測る: {command}",
                    f"the model is saved, and its verdict was stopped; to finish it: {command}",
                )
                return
        measured = measured_on(["before", "after"], self._measured, results)
        if not measured:
            self.why_none = Reason(
                "学習前の採点がないため、比べられません（学習の途中から評価データか判定を加えました）。",
                "there are no scores of the base to compare with (evaluation data or the verdict came in later).",
            )
            self._folder.write_run(verdict=self.pending)
            notice(f"判定: なし（{self.why_none.ja}）", f"verdict: none ({self.why_none.en})")
            return
        outcome = outcome_of(sides, measured, results, self._left(measured))
        self._tell(outcome, results, step, self._seconds + time.monotonic() - began)

    def _stops(self, step: int, signals: SignalFlags) -> Callable[[], bool]:
        def stops() -> bool:
            self._folder.faults.inject("verdict", step)
            return signals.stop is not None

        return stops

    def _left(self, measured: Tasks) -> list[Reason]:
        """What was not measured, and why."""
        counts, left = {task.name: len(task.items) for task in measured}, []
        for task in self._tasks:
            title, count, whole = (
                TITLE if task.name == "data" else task.title,
                counts.get(task.name, 0),
                len(task.items),
            )
            why = why_no_answers(self._plan.parallel.strategy) if task not in self._measured else None
            if why is not None:
                left.append(Reason(f"{title}: {why.ja}", f"{title}: {why.en}"))
            elif count < whole:
                left.append(
                    Reason(
                        f"{title}: 時間の上限のため、{whole:,} 件のうち {count:,} 件を測りました",
                        f"{title}: {count:,} of {whole:,} items were measured in the time allowed",
                    )
                )
        return left

    def _measure(self, model: Any, sides: Sequence[Side], tasks: Tasks, results: Results, clock: Clock) -> None:
        opened = OpenModel(model, self._plan.tokenizer, self._plan.source.name, not self._full)
        loaded = Loaded(sides[-1], opened)
        with untouched(model), _same_flags(model), self._computing(model):
            measure_within(sides, tasks, results, loaded, clock, self._say)

    @contextlib.contextmanager
    def _computing(self, model: Any) -> Iterator[None]:
        """The type that both sides compute in. All weights train in fp32, and are measured so, also when they are rounded."""
        device, autocast = self._plan.device.type, self._plan.precision.autocast
        if not self._full:
            with in_single_precision(model):
                yield
            return
        held = [(weight, weight.data) for weight in model.parameters() if weight.dtype is not torch.float32]
        for weight, data in held:
            weight.data = data.float()
        try:
            with torch.autocast(device, dtype=autocast, enabled=autocast is not None and device != "cpu"):
                yield
        finally:
            for weight, data in held:
                weight.data = data

    def _say(self, counts: Mapping[str, int], seconds: float) -> None:
        wholes = {task.name: len(task.items) for task in self._tasks}
        told = ", ".join(
            f"{TITLE if name == 'data' else name} {count:,}/{wholes[name]:,}" for name, count in counts.items()
        )
        notice(
            f"学習前のモデルと比べます（{told} 件、約 {duration(seconds)}）。",
            f"comparing with the model before training ({told} items, about {duration(seconds)}).",
        )

    def _tell(self, outcome: Outcome, results: Results, step: int, seconds: float) -> None:
        """Into metrics, report, card, run.json and terminal; said again, each holds it once."""
        self.improved = has_improved(outcome)
        folder, plan = self._folder.path, self._plan
        history = read_metrics(folder / METRICS)
        if not any("verdict" in row and row["step"] == step for row in history):
            metrics = MetricsFile(folder / METRICS, keep_until_step=max((row["step"] for row in history), default=step))
            metrics.write(metrics_row(outcome, step))
            metrics.close()
        few = None if self.improved else few_steps_unless_better(plan, history, step)
        _change(folder / REPORT, lambda page: with_verdict(page, outcome, results, few))
        _change(folder / _CARD, lambda card: _with_section(card, card_section(outcome)))
        self._folder.write_run(verdict=plain_verdict(outcome, step, seconds, len(plan.data.eval_data)))
        for line in [*result_lines(outcome, results), *(str(reason) for reason in outcome.planned.left_out)]:
            if line:
                notice(line, line)


def run_seconds(folder: Path) -> float:
    """Seconds of training as the rows of metrics.jsonl have them, over all times that the run was resumed."""
    whole = last = 0.0
    for row in read_metrics(folder / METRICS):
        seconds = row.get("seconds")
        if isinstance(seconds, int | float):
            whole += last if seconds < last else 0.0
            last = float(seconds)
    return whole + last


@contextlib.contextmanager
def _same_flags(model: Any) -> Iterator[None]:
    """Switching an adapter off and on decides which weights take gradients; afterwards they are those of before."""
    flags = [(weight, weight.requires_grad) for weight in unwrapped(model).parameters()]
    try:
        yield
    finally:
        for weight, flag in flags:
            if weight.requires_grad != flag:
                weight.requires_grad_(flag)


def _first(task: Task, count: int) -> Task:
    return _only(task, {item.name for item in task.items[:count]})


def _only(task: Task, names: set[str]) -> Task:
    return replace(task, items=tuple(item for item in task.items if item.name in names))


def _change(path: Path, change: Callable[[str], str]) -> None:
    """Changes a file that the run has written; one that is not there, or cannot be written, is left."""
    try:
        write_in_place(path, change(path.read_bytes().decode("utf-8")).encode("utf-8"))
    except OSError as error:
        warn(
            f"{path.name} に判定を書けませんでした（{error.strerror or error}）。run.json にはあります。",
            f"the verdict could not be put into {path.name} ({error.strerror or error}); run.json has it.",
        )


def _with_section(card: str, section: Reason) -> str:
    """A card with the verdict in front of its data, in both languages, in place of one that is there."""
    for text, title, data in ((section.ja, "## 判定", "## 学習データ"), (section.en, "## Verdict", "## Data")):
        pattern = rf"^(?:{title}\n(?:(?!^## ).*\n)*)?(?={data}$)"
        card = re.sub(pattern, lambda _, text=text: text, card, count=1, flags=re.MULTILINE)  # type: ignore[misc]
    return card
