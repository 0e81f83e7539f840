"""A few real steps of a run before it: how fast they are and what memory they take. Nothing of them is kept."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path

from ..engine.checkpoint.store import CheckpointStore
from ..engine.loop import advance
from ..engine.step import next_step, step_with_retry
from ..evaluation.samples import answers, choose
from ..messages import notice, speak
from ..planner.speed import PILOT, AnswerPace, Speed
from ..system.cores import threads_kept, use_physical_cores
from ..system.gpu import clear_gpu_memory, memory_growth
from .build import Built, build
from .preference import pretend_references
from .progress import saying_that_it_prepares
from .resolve import RunPlan

STEPS = 3
# Tokens that are generated before the clock counts, and while it does.
_WARM, _TIMED = 2, 24


def try_steps(plan: RunPlan) -> RunPlan:
    """The plan with the measured speed and memory of its first STEPS steps; the first, which warms up, does not count
    for the speed where there are others.

    Nothing is written, the user's model object does not change, and the run that follows begins from its seed, so that
    it is the same with a pilot before it as without. A run over several processes is not tried.

    Raises:
        ToolkitError: what the run would refuse in its first steps, as memory that does not suffice.
    """
    if max(plan.processes_to_start, plan.parallel.processes) > 1:
        notice(
            "複数プロセスの学習は試せないため、時間は前回の学習から見積もります。",
            "a run over several processes is not tried; its time is told by the last run.",
        )
        return plan
    notice(f"{STEPS} ステップだけ試しています（何も保存しません）。", f"trying {STEPS} steps (nothing is kept).")
    use_physical_cores()
    measured: list[tuple[float, int]] = []
    pace = AnswerPace()
    with threads_kept(), saying_that_it_prepares():  # a resumed run's number is not the next run's
        held = memory_growth(plan.device, lambda: measured.extend(_steps(plan, pace)))
    clear_gpu_memory()
    counted = measured[1:] or measured
    seconds, tokens = (sum(values) for values in zip(*counted, strict=True))
    speed = Speed(tokens / seconds, PILOT, pace.seconds) if seconds > 0 and tokens > 0 else plan.summary.speed
    return replace(plan, summary=replace(plan.summary, speed=speed, measured_memory=held))


def _steps(plan: RunPlan, pace: AnswerPace) -> list[tuple[float, int]]:
    """(seconds, tokens) of each step that was tried; the pace of an answer behind them, where the run will write some."""
    speak(only_errors=True)  # the run that follows says what it builds
    try:
        built = build(plan, CheckpointStore(Path(plan.summary.output_dir)), None)
    finally:
        speak(only_errors=False)
    pretend_references(plan, built)
    run, obtained = built.run, []
    run.model.train()
    try:
        with contextlib.closing(run.strategy):
            for _ in range(min(STEPS, run.total_steps)):
                began = time.perf_counter()
                data, _ = next_step(run)
                outcome = step_with_retry(run, data)
                obtained.append((time.perf_counter() - began, outcome.tokens))
                advance(run, outcome)
            _answer(plan, built, pace)
    finally:
        if built.path is not None:
            built.path.close()
    return obtained


def _answer(plan: RunPlan, built: Built, pace: AnswerPace) -> None:
    """Times a short answer to an evaluation row."""
    asked = plan.summary.asked
    if not plan.data.eval_data or not (asked.questions or asked.samples or asked.judged):
        return
    system = plan.request.config.data.system_prompt or plan.data.report.system
    questions = choose(plan.data.eval_data, plan.tokenizer, built.model.config, 1, system)
    with contextlib.nullcontext() if built.path is None else built.path.paused():
        answers(built.model, plan.tokenizer, questions, most=_WARM)
        answers(built.model, plan.tokenizer, questions, most=_TIMED, pace=pace)
