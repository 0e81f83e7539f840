"""What a beginner's run is made of: three lengths, and settings that follow from model, data and this PC. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..embedded import MODEL
from ..errors import Reason
from ..models.local import need_bytes
from ..system.machine import machine

# A small model learns at a higher rate than the papers' models do (recipes/kotoha-tiny).
PRACTICE_RATE, USUAL_RATE = 3e-3, 2e-4
# Rows from which a tenth is kept for evaluation, and from which a step takes sixteen rows instead of four.
WITH_EVALUATION, _LARGE = 20, 400

# Fewer optimizer steps than this teach next to nothing.
_FEW_STEPS = 50


@dataclass(frozen=True)
class Preset:
    """How long a run trains: at least so many epochs, and where these are few steps, so many steps; and how many fixed
    questions it answers at each evaluation.
    """

    ja: str
    en: str
    epochs: int
    steps: int
    keeps_best: bool = False
    questions: int = 0

    def epochs_for(self, steps_per_epoch: int) -> int:
        """Epochs of a run: a few dozen steps teach nothing, however often the rows come."""
        return max(self.epochs, math.ceil(self.steps / max(1, steps_per_epoch)))

    def settings(self, steps_per_epoch: int, *, evaluates: bool) -> dict[str, Any]:
        """What it sets, by dotted name.

        Args:
            evaluates: the run has evaluation data.
        """
        values: dict[str, Any] = {"training.num_epochs": self.epochs_for(steps_per_epoch)}
        if self.questions and evaluates:
            values["training.evaluation.generate"] = self.questions
        if self.keeps_best and evaluates:
            values["training.evals_per_epoch"] = 1
            values["training.checkpoint.load_best"] = True
            values["training.runtime.early_stopping_patience"] = 3
        return values


PRESETS = {
    "quick": Preset("速い", "quick", 1, 30),
    "standard": Preset("標準", "standard", 3, 60, questions=10),
    "careful": Preset("ていねい", "careful", 6, 150, keeps_best=True, questions=10),
}


def suggested(model: str, rows: int) -> dict[str, Any]:
    """Settings by dotted name that follow from a model and the number of rows that can be used."""
    values: dict[str, Any] = {
        "method": method_that_fits(model),
        "data.eval": 0.1 if rows >= WITH_EVALUATION else None,
        "data.max_length": 512,
        "training.learning_rate": PRACTICE_RATE if model == MODEL else USUAL_RATE,
        "training.schedule.warmup_ratio": 0.1,
    }
    if rows < _LARGE:  # else 4 x 4, the default, which a plan may cut otherwise on a GPU
        values["training.batch_size"], values["training.gradient_accumulation_steps"] = 4, 1
    return values | {"lora.r": 16, "lora.lora_alpha": 32}


def method_that_fits(name: str) -> str:
    """LoRA; on a GPU that is too small for it and not for QLoRA, that."""
    pc = machine()
    needs = {method: need_bytes(name, method) for method in ("lora", "qlora")}
    too_large = needs["lora"] is not None and needs["lora"] > pc.room
    return "qlora" if pc.gpus and too_large and (needs["qlora"] or pc.room + 1) <= pc.room else "lora"


def few_steps(total: int, an_epoch: int, rows_per_step: int, *, by_steps: bool) -> Reason | None:
    """That a run is too short to learn much, and what to change; None where it is not.

    Args:
        total, an_epoch: steps of the run and of an epoch.
        by_steps: its length is given in steps (training.schedule.max_steps).
    """
    if total >= _FEW_STEPS:
        return None
    epochs = -(-_FEW_STEPS // an_epoch)
    longer = Reason(f"training.num_epochs を {epochs} 以上にする", f"training.num_epochs to {epochs} or more")
    if by_steps:
        longer = Reason(
            f"training.schedule.max_steps を {_FEW_STEPS} 以上にする",
            f"training.schedule.max_steps to {_FEW_STEPS} or more",
        )
    return Reason(
        f"{total} ステップでは、あまり学習が進まない見込みです（目安は {_FEW_STEPS} 以上）。{longer.ja}か、1 ステップの行数"
        f"（batch_size と gradient_accumulation_steps の積。いまは {rows_per_step}）を減らすか、学習データを増やしてください。",
        f"{total} steps teach little ({_FEW_STEPS} or more are usual). Raise {longer.en}, lower the rows of a "
        f"step (batch_size times gradient_accumulation_steps, {rows_per_step} now), or give more training data.",
    )
