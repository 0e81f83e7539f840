"""What a run learns from, before anything is built: its loss, and what it does not go together with."""

from __future__ import annotations

from ..config.preference import LOSSES, PreferenceConfig
from ..config.run import RunConfig
from ..errors import ConfigError
from ..parallel.plan import ParallelPlan
from ..parallel.strategies.pipeline import SCHEDULES
from .request import TrainRequest


def preference_of(config: RunConfig) -> PreferenceConfig | None:
    """The preference section with its loss by name; None for a run over texts."""
    return None if config.objective == "sft" else config.loss_settings


def reference_passes(config: RunConfig) -> int:
    """How often every row is scored before step 1: for the reference, and for KTO's reference point with another answer."""
    settings = preference_of(config)
    if settings is None or not LOSSES[str(settings.loss)].reference:
        return 0
    return 2 if settings.loss == "kto" else 1


def validate_objective(request: TrainRequest, parallel: ParallelPlan) -> None:
    """Refuses what pairs of answers, or marked ones, are not trained with, beyond what their settings say (RunConfig).

    Raises:
        ConfigError: with the way out.
    """
    config = request.config
    if config.objective == "sft":
        return
    splits = parallel.sizes.pp > 1 and SCHEDULES[parallel.schedule].splits_backward
    for refused, name, ja, en in (
        (
            parallel.zero_stage is not None,
            "parallel.deepspeed_stage",
            "strategy: fsdp を使ってください（重みも勾配も同じように分けます）",
            "use strategy: fsdp, which divides weights and gradients too",
        ),
        (
            parallel.strategy == "model_parallel",
            "parallel.strategy: model_parallel",
            "strategy: fsdp か、method: qlora で 1 台の GPU を使ってください",
            "use strategy: fsdp, or one GPU with method: qlora",
        ),
        (
            splits,
            f"parallel.pipeline_schedule: {parallel.schedule}",
            "1F1B を使ってください",
            "use 1F1B",
        ),
        (
            request.hooks.compute_metrics is not None,
            "compute_metrics",
            "外してください（評価では eval_rewards/accuracies などを計算します）",
            "leave it out (evaluation computes eval_rewards/accuracies and others)",
        ),
    ):
        if refused:
            raise ConfigError(
                f"objective: {config.objective} は {name} と組み合わせられません。{ja}。",
                f"objective: {config.objective} does not go with {name}: {en}.",
            )
