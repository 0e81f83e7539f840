"""samples.jsonl: the same questions, answered at each evaluation, so that one sees what a model learns and loses."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ..config.run_folder import SAMPLES
from ..engine.hooks import Callback, Control
from ..engine.train_state import TrainState
from ..evaluation.samples import Question, answers, choose
from ..messages import notice, warn
from ..system.files import appended, replacing
from .build import Built
from .resolve import RunPlan


def fixed_questions(plan: RunPlan, built: Built, folder: Path) -> list[Callback]:
    """What asks them, where they are asked for; none where a run cannot, which is said."""
    count = plan.request.config.training.evaluation.generate
    if count == 0:
        return []
    if not plan.data.eval_data or plan.parallel.processes > 1:
        notice(
            "training.evaluation.generate の質問には答えません（評価データがないか、プロセスが複数です）。",
            "the questions of training.evaluation.generate are not asked: there is no evaluation data, or there are several "
            "processes.",
        )
        return []
    system = plan.request.config.data.system_prompt or plan.data.report.system
    chosen = choose(plan.data.eval_data, plan.tokenizer, built.model.config, count, system)
    return [FixedQuestions(chosen, plan.tokenizer, built, folder / SAMPLES)]


class FixedQuestions(Callback):
    """Answers the questions at each evaluation, greedily, and leaves the run as it was.

    Args:
        questions: in their order.
        built: the run; its model answers.
        path: gets a line for each answer: step, question, expected, answer (null where time ran out).
    """

    def __init__(self, questions: list[Question], tokenizer: Any, built: Built, path: Path) -> None:
        self._questions, self._tokenizer, self._built, self._path = questions, tokenizer, built, path

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """Keeps the answers up to where a resumed run goes on."""
        kept = [line for line in self._lines() if state.step > 0 and json.loads(line)["step"] <= state.step]
        with replacing(self._path, mode=0o600) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())

    def _lines(self) -> list[str]:
        """The whole lines that are there and can be read."""
        lines = []
        with contextlib.suppress(OSError):
            for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
                with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
                    if isinstance(json.loads(line)["step"], int):
                        lines.append(line)
        return lines

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """Asks them."""
        path = self._built.path
        with contextlib.nullcontext() if path is None else path.paused():
            given = answers(self._built.model, self._tokenizer, self._questions)
        rows = [
            {"step": state.step, "question": question.text, "expected": question.expected, "answer": answer}
            for question, answer in zip(self._questions, given, strict=True)
        ]
        try:
            with appended(self._path) as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        except OSError as error:
            warn(
                f"{self._path} に書き込めません（{error}）。学習は続けます。",
                f"{self._path} cannot be written ({error}); training continues.",
            )
