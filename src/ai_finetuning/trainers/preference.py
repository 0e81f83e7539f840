"""PreferenceTrainer: learns from pairs of answers (DPO and its kin), or from answers marked good or bad (KTO)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.parallel import ParallelConfig
from ..config.preference import LOSSES, Objective, PreferenceConfig
from ..config.run import RunConfig
from ..config.training import TrainingConfig
from ..execution.request import TrainRequest, adapter_settings
from ..execution.result import Result
from ..execution.sources import with_resume
from ..execution.trainer_hooks import make_hooks
from ..models.base_model import BaseModel
from ..models.wrong_objects import require_kind
from .starting import data_of, model_config
from .trainer import Trainer


class PreferenceTrainer(Trainer):
    """Fine-tunes on preferences, all weights or an adapter.

    Args:
        model: the base; loaded on first use. With lora_config also a model with an adapter, as load_lora_model() and
            train() return it, or a JapaneseModel of an adapter's folder: training goes on from its weights.
        training_config: training settings.
        lora_config: trains an adapter (LoRA, QLoRA); None trains all weights.
        preference: the loss and its numbers; None is DPO. A loss of KTO's makes the objective kto.
        train_dataset, eval_dataset: rows such as {"prompt", "chosen", "rejected"}, or for KTO {"prompt", "completion",
            "label"}, texts or lists of messages; or anything else that train() takes as texts.
        data: max_length and what else turns rows into tokens.
        callbacks: transformers.TrainerCallback objects or classes, called on every process.

    Attributes:
        result: what the last train() gave: state, history, seconds, peak memory.
    """

    def __init__(
        self,
        model: BaseModel,
        training_config: TrainingConfig,
        lora_config: LoRAConfig | None = None,
        preference: PreferenceConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        data: DataConfig | None = None,
        callbacks: Iterable[Any] = (),
    ) -> None:
        swapped = isinstance(training_config, LoRAConfig) and isinstance(lora_config, TrainingConfig)
        require_kind("training_config", training_config, TrainingConfig, why="lora_config" if swapped else "")
        require_kind("lora_config", lora_config or LoRAConfig(), LoRAConfig)
        require_kind("preference", preference or PreferenceConfig(), PreferenceConfig)
        require_kind("data", data or DataConfig(), DataConfig)
        self.training_config = training_config
        self.lora_config = self._take(model, lora_config)
        self.preference = preference or PreferenceConfig()
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.data = data_of(self._start, data or DataConfig())
        self.result: Result | None = None
        self._hooks = make_hooks(callbacks, None, None)

    @property
    def objective(self) -> Objective:
        """Whose loss `preference` names."""
        return LOSSES[self.preference.loss or "sigmoid"].objective

    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        adapter: dict[str, Any] = {}
        if self.lora_config is not None:
            adapter["lora"] = adapter_settings(self.model, self.lora_config)
        config = RunConfig(
            model=model_config(self._start, self.model),
            method="full" if self.lora_config is None else "lora",
            data=self.data,
            training=with_resume(self.training_config, resume_from_checkpoint),
            parallel=getattr(self.training_config, "parallel", None) or ParallelConfig(),
            objective=self.objective,
            preference=self.preference,
            **adapter,
        )
        return TrainRequest(self.model, config, train, eval_data, hooks=self._hooks)
