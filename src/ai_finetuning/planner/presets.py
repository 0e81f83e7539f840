"""What a beginner's run is made of: three lengths, and settings that follow from model, data and this PC. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..embedded import MODEL
from ..errors import Reason
from ..models.local import need_bytes
from ..system.machine import machine

# A small model learns at a higher rate than the papers' models do (recipes/kotoha-tiny).
PRACTICE_RATE, USUAL_RATE = 3e-3, 2e-4
# Comparisons take far lower ones: kotoha-tiny forgets general Japanese from 3e-4 on (docs/preference.md), and of others a
# tenth of the supervised rate is usual.
COMPARED_PRACTICE_RATE, COMPARED_RATE, HIGH_COMPARED_RATE = 1e-4, 2e-5, 3e-4
# Times that a comparison is seen from which it is rather learnt by heart.
_OFTEN = 10
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


# Of pairs of answers and marked ones: the same few again and again are learnt by heart, so that few of them make a short run.
COMPARED_PRESETS = {
    "quick": Preset("速い", "quick", 1, 0),
    "standard": Preset("標準", "standard", 2, 0, questions=10),
    "careful": Preset("ていねい", "careful", 3, 0, keeps_best=True, questions=10),
}


def presets_for(objective: str) -> dict[str, Preset]:
    """The lengths of a run by what it learns from."""
    return PRESETS if objective == "sft" else COMPARED_PRESETS


def rate_for(model: str, objective: str) -> float:
    """The learning rate of an adapter by model and objective."""
    practice = model == MODEL
    if objective == "sft":
        return PRACTICE_RATE if practice else USUAL_RATE
    return COMPARED_PRACTICE_RATE if practice else COMPARED_RATE


def suggested(model: str, rows: int, objective: str = "sft") -> dict[str, Any]:
    """Settings by dotted name that follow from a model, the number of rows that can be used, and what they teach."""
    values: dict[str, Any] = {
        "method": method_that_fits(model),
        "data.eval": 0.1 if rows >= WITH_EVALUATION else None,
        "data.max_length": 512,
        "training.learning_rate": rate_for(model, objective),
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


def compared_notes(objective: str, rows: int | None, *, epochs: float, rate: float) -> list[Reason]:
    """What to say before a run over pairs of answers or marked ones: so few that they are learnt by heart, and so high a
    rate that other things are forgotten.

    Args:
        rows: of the training; None where nobody has counted them.
        epochs: how often each comes.
    """
    if objective == "sft":
        return []
    notes = []
    if rows is not None and (rows < WITH_EVALUATION or epochs >= _OFTEN):
        notes.append(
            Reason(
                f"{rows:,} 行の比較を {epochs:.3g} 回ずつ学習します。少ない比較をくり返すと、丸暗記で損失だけが 0 に近づき、ほかの質問への答えはよくなりません。"
                f"比較を増やすか（{WITH_EVALUATION} 行未満では評価もできません）、training.num_epochs を減らしてください。",
                f"{rows:,} comparisons are learnt {epochs:.3g} times each. Few of them, again and again, are learnt by heart: the "
                "loss goes to 0, and answers to other questions get no better. Give more of them (fewer than "
                f"{WITH_EVALUATION} leave none for evaluation), or lower training.num_epochs.",
            )
        )
    if rate >= HIGH_COMPARED_RATE:
        notes.append(
            Reason(
                f"training.learning_rate の {rate:g} は、回答の比較からの学習には高い値です。同梱のモデルは {HIGH_COMPARED_RATE:g} から一般の日本語を忘れました。"
                f"{COMPARED_PRACTICE_RATE:g}（大きなモデルは {COMPARED_RATE:g}）前後にしてください。",
                f"training.learning_rate is {rate:g}, which is high for comparisons: the model that ships forgot general Japanese "
                f"from {HIGH_COMPARED_RATE:g} on. Take about {COMPARED_PRACTICE_RATE:g}, of larger models {COMPARED_RATE:g}.",
            )
        )
    return notes


def few_steps(
    total: int, an_epoch: int, rows_per_step: int, *, by_steps: bool, compared: bool = False
) -> Reason | None:
    """That a run is too short to learn much, and what to change; None where it is not.

    Args:
        total, an_epoch: steps of the run and of an epoch.
        by_steps: its length is given in steps (training.schedule.max_steps).
        compared: it learns from comparisons, of which more epochs would only be learnt by heart.
    """
    if total >= _FEW_STEPS:
        return None
    if compared:
        return Reason(
            f"{total} ステップでは、あまり学習が進まない見込みです（目安は {_FEW_STEPS} 以上）。比較を増やしてください。",
            f"{total} steps teach little ({_FEW_STEPS} or more are usual). Give more comparisons.",
        )
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


def plain_notes(few: Reason | None, others: Sequence[Reason]) -> list[dict[str, str]]:
    """What people should know before they start, for JSON: of few steps, and else of comparisons; in both languages."""
    notes = [*([("few_steps", few)] if few is not None else []), *(("comparisons", one) for one in others)]
    return [{"kind": kind, "ja": one.ja, "en": one.en} for kind, one in notes]
