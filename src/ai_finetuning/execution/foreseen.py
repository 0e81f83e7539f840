"""What a plan knows of a run beside its steps: what the model will be asked, and what people should be told before it."""

from __future__ import annotations

from typing import Any

from ..data.prepare import PreparedData
from ..planner.gpus import card_named
from ..planner.length import MOST_JUDGED, Asked, token_seconds
from ..planner.presets import compared_notes
from ..system import nvml
from .planned_model import PlannedModel


def foreseen(model: PlannedModel, data: PreparedData, *, processes: int, epochs: float) -> dict[str, Any]:
    """The fields `asked` and `findings` of a plan (planner/plan.py).

    Args:
        processes: of the run; of several none asks anything but the verdict, which then scores prose alone.
        epochs: how often its rows come.
    """
    config = model.request.config
    training, alone, evaluates = config.training, processes == 1, len(data.eval_data) > 0
    judges = training.evaluation.verdict and evaluates and config.method != "pretrain"
    rows = min(MOST_JUDGED, len(data.eval_data)) if alone else 0
    asked = Asked(
        questions=training.evaluation.generate if evaluates and alone else 0,
        samples=min(training.runtime.report_samples, len(data.eval_data)) if alone else 0,
        judged=rows if judges else None,
        answers_a_row=2 if config.objective == "preference" else 1,
        token_seconds=_token_seconds(model),
    )
    streamed = data.stream is not None
    notes = compared_notes(
        config.objective, None if streamed else len(data.train), epochs=epochs, rate=training.learning_rate
    )
    return {"asked": asked, "findings": tuple(notes)}


def _token_seconds(model: PlannedModel) -> float:
    elsewhere, shape = model.place.elsewhere, model.shape
    gpu = elsewhere is not None or model.device.type != "cpu"
    card = None if elsewhere is None else elsewhere.card
    if elsewhere is None and model.device.type == "cuda":
        cards, index = nvml.gpus(), model.device.index or 0
        card = card_named(cards[index].name) if index < len(cards) else None
    return token_seconds(shape.parameters, shape.layers, gpu=gpu, card=card, bits=model.request.bits)
