"""The demo's lesson, one configuration a method; full fine-tuning, LoRA and QLoRA of one base, measured side by
side.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config.data import DataConfig, ReplayConfig
from ..config.model import ModelConfig
from ..config.run import RunConfig
from ..config.run_folder import EVAL
from ..config.section import with_values
from ..config.sections import CheckpointConfig, EvaluationConfig, RuntimeConfig, ScheduleConfig
from ..config.training import TrainingConfig
from ..evaluation.answers import Graded, exact_match, grade
from ..execution.execute import execute
from ..execution.pilot import try_steps
from ..execution.request import TrainRequest
from ..execution.resolve import resolve
from ..execution.result import Result
from ..messages import speak
from ..models.adapters import trainable_parameters
from ..models.japanese_model import JapaneseModel
from ..models.quantized import weight_bytes
from ..models.source import weight_file_bytes

# Found by trial on the model that ships: recipes/kotoha-tiny/README.md. Full fine-tuning moves every weight and needs
# less.
Method = Literal["full", "lora", "qlora"]
RATES: dict[Method, float] = {"full": 1e-3, "lora": 3e-3, "qlora": 3e-3}
RANK, ROWS_PER_STEP, EPOCHS = 64, 16, 8
# Of the lesson that keeps the base's prose: the one of docs/evaluation.md that holds both of its goals.
KEEPING_EPOCHS = 10
# Gradient and two moments of Adam for a parameter that trains, fp32.
TRAINING_BYTES = 12


@dataclass(frozen=True)
class Measured:
    """What one method gave.

    Attributes:
        held_out_loss: nats per token, after training.
        accuracy: share of the questions answered exactly.
        seconds: of the loop.
        memory_bytes: weights as held in training, gradients and optimizer, counted tensor by tensor; activations are
            left out.
        disk_bytes: weights in the output folder.
    """

    method: str
    held_out_loss: float
    accuracy: float
    seconds: float
    memory_bytes: int
    disk_bytes: int


def lesson(
    method: Method,
    base: str,
    out: Path,
    *,
    epochs: int = EPOCHS,
    max_steps: int | None = None,
    resume: bool = False,
    verdict: bool = True,
    keeps: bool = False,
) -> RunConfig:
    """How a tiny base learns a few thousand short answers.

    Args:
        method: full, lora or qlora.
        base: hub id, folder or embedded name.
        out: the run's folder.
        max_steps: None for whole epochs.
        resume: go on from the newest checkpoint in `out`.
        verdict: compare it with its base at the end.
        keeps: mix prose in, on which the model is held to its base; for LoRA and QLoRA.
    """
    training = TrainingConfig(
        learning_rate=RATES[method],
        batch_size=ROWS_PER_STEP,
        gradient_accumulation_steps=1,
        num_epochs=epochs,
        eval_steps=10**6,
        save_steps=10**6,
        logging_steps=100,
        output_dir=str(out),
        gradient_checkpointing=False,
        schedule=ScheduleConfig(name="cosine", max_steps=max_steps),
        checkpoint=CheckpointConfig(resume_from_checkpoint="auto" if resume else None),
        runtime=RuntimeConfig(seed=0),
        evaluation=EvaluationConfig(verdict=verdict, generate=10 if verdict else 0),
    )
    data = DataConfig(max_length=128)
    if keeps:  # what it holds, and at what price: docs/evaluation.md
        data = DataConfig(max_length=128, on_long="split", replay=ReplayConfig("embedded:prose", 0.5, distill=4.0))
    config = RunConfig(model=ModelConfig(base), method=method, data=data, training=training)
    if method == "full":
        return config
    return with_values(config, lora=with_values(config.lora, r=RANK, lora_alpha=RANK, lora_dropout=0.0))


def teach(config: RunConfig, rows: Any, questions: Sequence[tuple[str, str]]) -> tuple[JapaneseModel, Result]:
    """Trains on rows, with the (question, answer) pairs as evaluation data; returns the model and what the run gave."""
    model = JapaneseModel(config.model.name)
    eval_data = [{"instruction": question, "output": answer} for question, answer in questions]
    return model, execute(TrainRequest(model, config, rows, eval_data))


def seconds_of(config: RunConfig, rows: Any, questions: Sequence[tuple[str, str]]) -> float:
    """How long teach() will train on this machine, by three steps that are tried; its verdict comes after that."""
    eval_data = [{"instruction": question, "output": answer} for question, answer in questions]
    speak(only_errors=True)  # the run says all of it
    try:
        plan = try_steps(resolve(TrainRequest(JapaneseModel(config.model.name), config, rows, eval_data)))
    finally:
        speak(only_errors=False)
    return plan.summary.training_seconds


def held_out_losses(result: Result) -> tuple[float, float]:
    """(before, after) in nats per token."""
    scored = [row["eval_loss"] for row in result.history if row.get("eval_loss") is not None]
    return scored[0], scored[-1]


def answers_of(folder: Path) -> tuple[list[Graded], list[Graded]]:
    """(before, after): what the verdict of a run has asked of the evaluation data, in the order of the data."""
    found: dict[str, list[tuple[int, Graded]]] = {"before": [], "after": []}
    if not (folder / EVAL).is_file():  # there was no verdict, and run.json says why
        return [], []
    for line in (folder / EVAL).read_text(encoding="utf-8").splitlines()[1:]:
        row = json.loads(line)
        if row["task"] == "data":
            place = int(row["item"].rpartition("-")[2])
            found[row["side"]].append((place, Graded(row["question"], row["accepted"][0], row["answer"])))
    both = {place for place, _ in found["before"]} & {place for place, _ in found["after"]}
    before, after = (
        [graded for place, graded in sorted(found[side], key=lambda pair: pair[0]) if place in both]
        for side in ("before", "after")
    )
    return before, after


def compare_methods(
    base: str,
    rows: Any,
    questions: Sequence[tuple[str, str]],
    out: Path,
    *,
    epochs: int = EPOCHS,
    max_steps: int | None = None,
    resume: bool = False,
) -> list[Measured]:
    """Trains the base three times and asks each result the same questions.

    Args:
        base: hub id, folder or embedded name.
        rows: training data in any form.
        questions: (question, expected answer) pairs; also the evaluation data.
        out: gets one folder a method.
        resume: go on with what is there.
    """
    obtained = []
    for method in RATES:
        config = lesson(method, base, out / method, epochs=epochs, max_steps=max_steps, resume=resume, verdict=False)
        model, result = teach(config, rows, questions)
        trains = trainable_parameters(result.model)[0]
        obtained.append(
            Measured(
                method,
                held_out_losses(result)[1],
                exact_match(grade(result.model, model.ensure_tokenizer(), questions)),
                result.seconds,
                sum(weight_bytes(result.model).values()) + TRAINING_BYTES * trains,
                weight_file_bytes(result.folder),
            )
        )
    return obtained
