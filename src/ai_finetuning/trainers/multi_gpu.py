"""AdvancedMultiGPUTrainer: training under a parallel strategy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.training import MultiGPUTrainingConfig, TrainingConfig
from ..execution.request import TrainRequest
from ..execution.result import Result
from ..execution.trainer_hooks import ComputeMetrics, PreprocessLogits, make_hooks
from ..models.base_model import BaseModel
from ..models.wrong_objects import require_kind
from .full import FullFinetuningTrainer
from .lora import LoRAFinetuningTrainer
from .starting import data_of
from .trainer import Trainer


class AdvancedMultiGPUTrainer(Trainer):
    """Fine-tunes over several devices: starts one process a GPU where several are visible, joins a launcher's processes
    where there are some, and trains as usual on one device.

    Args:
        model: the base; loaded on first use.
        config: training settings with the strategy.
        train_dataset, eval_dataset: TextDataset, or anything that train() takes as texts.
        data: max_length, packing and what else turns rows into tokens.
        lora_config: trains an adapter (LoRA, QLoRA) instead of all weights.
        callbacks, compute_metrics, preprocess_logits_for_metrics: as in FullFinetuningTrainer; refused where train()
            would start the processes by itself.
    """

    def __init__(
        self,
        model: BaseModel,
        config: MultiGPUTrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        data: DataConfig | None = None,
        lora_config: LoRAConfig | None = None,
        callbacks: list[Any] | None = None,
        compute_metrics: ComputeMetrics | None = None,
        preprocess_logits_for_metrics: PreprocessLogits | None = None,
    ) -> None:
        require_kind("config", config, TrainingConfig)
        require_kind("data", data or DataConfig(), DataConfig)
        require_kind("lora_config", lora_config or LoRAConfig(), LoRAConfig)
        self.lora_config = self._take(model, lora_config)
        self.config = config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.data = data_of(self._start, data or DataConfig())
        self.result: Result | None = None
        self._hooks = make_hooks(callbacks, compute_metrics, preprocess_logits_for_metrics)

    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        trainer: FullFinetuningTrainer | LoRAFinetuningTrainer
        if self.lora_config is None:
            trainer = FullFinetuningTrainer(
                self.model, self.config, self.train_dataset, self.eval_dataset, use_accelerate=False, data=self.data
            )
        else:
            trainer = LoRAFinetuningTrainer(
                self.model, self.lora_config, self.config, self.train_dataset, self.eval_dataset, data=self.data
            )
            trainer._start = self._start
        return replace(trainer._request(train, eval_data, resume_from_checkpoint), hooks=self._hooks)
