"""Short real trainings on a tiny model, and what to compare of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from ai_finetuning import (
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    FullFinetuningTrainer,
    JapaneseModel,
    LoRAConfig,
    LoRAFinetuningTrainer,
    MultiGPUTrainingConfig,
    RuntimeConfig,
    TrainingConfig,
)
from ai_finetuning.config.run_folder import METRICS

ROWS = [{"instruction": f"{number}の次の数は何ですか？", "output": f"{number + 1}です。"} for number in range(22)]


def training(folder: Path, **changes: Any) -> TrainingConfig:
    """Six steps an epoch of 22 rows (the last one short), two micro-batches a step, no progress lines, no sample
    answers, and no verdict: it reads 48 passages of prose twice, which takes longer than such a run.
    """
    runtime = changes.pop("runtime", {})
    evaluation = changes.pop("evaluation", {})
    checkpoint = changes.pop("checkpoint", {})
    values: dict[str, Any] = {
        "learning_rate": 5e-3,
        "batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_epochs": 2,
        "warmup_steps": 2,
        "eval_steps": 100,
        "save_steps": 3,
        "output_dir": str(folder),
        "gradient_checkpointing": False,
    }
    kind = MultiGPUTrainingConfig if "parallel" in changes else TrainingConfig
    return kind(
        **values | changes,
        runtime=RuntimeConfig(**{"progress": False, "precision": "fp32", "report_samples": 0} | runtime),
        checkpoint=CheckpointConfig(**checkpoint),
        evaluation=EvaluationConfig(**{"verdict": False} | evaluation),
    )


def train_lora(
    model_dir: Path,
    folder: Path,
    *,
    rows: Any = None,
    data: DataConfig | None = None,
    lora: dict[str, Any] | None = None,
    resume: str | None = None,
    evaluate: Any = None,
    **changes: Any,
) -> LoRAFinetuningTrainer:
    """A LoRA run with dropout; returns the trainer with its result."""
    config = LoRAConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1} | (lora or {}))
    model = JapaneseModel(str(model_dir), torch_dtype=torch.float32)
    trainer = LoRAFinetuningTrainer(model, config, training(folder, **changes), data=data or DataConfig(max_length=64))
    trainer.train(rows if rows is not None else ROWS, evaluate, resume_from_checkpoint=resume)
    return trainer


def train_full(
    model_dir: Path,
    folder: Path,
    *,
    rows: Any = None,
    data: DataConfig | None = None,
    resume: str | None = None,
    evaluate: Any = None,
    use_accelerate: bool = False,
    **changes: Any,
) -> FullFinetuningTrainer:
    """A full fine-tuning run; returns the trainer with its result."""
    model = JapaneseModel(str(model_dir))
    trainer = FullFinetuningTrainer(
        model,
        training(folder, **{"learning_rate": 1e-3} | changes),
        use_accelerate=use_accelerate,
        data=data or DataConfig(max_length=64),
    )
    trainer.train(rows if rows is not None else ROWS, evaluate, resume_from_checkpoint=resume)
    return trainer


def weights_digest(folder: Path) -> str:
    """SHA-256 of the saved weights, byte for byte."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def losses(folder: Path) -> list[str]:
    """Every step's loss, exactly (hex), from metrics.jsonl."""
    from ai_finetuning.engine.metrics import read_metrics

    return [float(row["loss"]).hex() for row in read_metrics(folder / METRICS) if "loss" in row]
