"""Full fine-tuning, LoRA and QLoRA of one base on the same data, measured side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.run import RunConfig
from ..config.section import with_values
from ..config.training import TrainingConfig
from ..evaluation.generation import exact_match, grade
from ..models.adapters import trainable_parameters
from ..models.japanese_model import JapaneseModel
from ..models.quantized import weight_bytes
from .assemble import Job, run_job

# Learning rates at which each method does well on tiny models; full fine-tuning moves every weight and needs less.
RATES = {"full": 1e-3, "lora": 3e-3, "qlora": 3e-3}
# Gradient and two moments of Adam for a parameter that trains, fp32.
TRAINING_BYTES = 12


@dataclass(frozen=True)
class Measured:
    """What one method gave.

    Attributes:
        held_out_loss: nats per token, after training.
        accuracy: share of the questions answered exactly.
        seconds: of the loop.
        memory_bytes: weights as held in training, gradients and optimizer, counted tensor by tensor; activations are left out.
        disk_bytes: weights in the output folder.
    """

    method: str
    held_out_loss: float
    accuracy: float
    seconds: float
    memory_bytes: int
    disk_bytes: int


def compare_methods(
    base: Path, rows: Any, questions: Sequence[tuple[str, str]], out: Path, *, epochs: int, rank: int = 32
) -> list[Measured]:
    """Trains the base three times and asks each result the same questions.

    Args:
        base: a model's folder.
        rows: training data in any form.
        questions: (question, wanted answer) pairs; also the held-out data.
        out: gets one folder a method.
        epochs, rank: of the training and of the adapters.
    """
    held_out = [{"instruction": question, "output": answer} for question, answer in questions]
    found = []
    for method, rate in RATES.items():
        model = JapaneseModel(str(base))
        training = TrainingConfig(
            learning_rate=rate, batch_size=16, gradient_accumulation_steps=1, num_epochs=epochs, eval_steps=10**6,
            output_dir=str(out / method), logging_steps=100,
        )  # fmt: skip
        config = RunConfig(
            method="full" if method == "full" else "lora", data=DataConfig(max_length=128), training=training
        )
        if method != "full":
            config = with_values(
                config, lora=LoRAConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, use_qlora=method == "qlora")
            )
        result = run_job(Job(model, config, rows, held_out))
        trains = trainable_parameters(result.model)[0]
        found.append(
            Measured(
                method,
                [row["eval_loss"] for row in result.history if row.get("eval_loss") is not None][-1],
                exact_match(grade(result.model, model.ensure_tokenizer(), questions)),
                result.seconds,
                sum(weight_bytes(result.model).values()) + TRAINING_BYTES * trains,
                sum(path.stat().st_size for path in result.folder.glob("*.safetensors")),
            )
        )
    return found
