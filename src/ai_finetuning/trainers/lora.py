"""LoRAFinetuningTrainer: trains adapters, on 16-bit or quantized bases."""

from __future__ import annotations

from typing import Any

import torch

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.parallel import ParallelConfig
from ..config.run import RunConfig
from ..config.training import TrainingConfig
from ..execution.request import TrainRequest
from ..execution.result import Result
from ..execution.sources import with_resume
from ..execution.trainer_hooks import ComputeMetrics, PreprocessLogits, make_hooks
from ..models.adapter_folder import adapter_config
from ..models.adapters import load_adapter, saved_tokenizer
from ..models.base_model import BaseModel
from ..models.loading import load_causal_lm
from ..models.tokenizers import load_tokenizer
from .starting import base_and_adapter, data_of, model_config
from .trainer import Trainer


class LoRAFinetuningTrainer(Trainer):
    """Fine-tunes with LoRA or QLoRA.

    Args:
        model: the base; loaded on first use, quantized where lora_config.use_qlora says so. A model with an adapter,
            as load_lora_model() and train() return it, or a JapaneseModel of an adapter's folder: training goes on
            from its weights, with a fresh optimizer.
        lora_config: the adapter.
        training_config: training settings.
        train_dataset, eval_dataset: TextDataset, or anything that train() takes as texts.
        data: max_length, packing and what else turns rows into tokens.
        callbacks, compute_metrics, preprocess_logits_for_metrics: as in FullFinetuningTrainer.

    Attributes:
        result: what the last train() gave: state, history, seconds, peak memory.
    """

    def __init__(
        self,
        model: BaseModel,
        lora_config: LoRAConfig,
        training_config: TrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        data: DataConfig | None = None,
        callbacks: list[Any] | None = None,
        compute_metrics: ComputeMetrics | None = None,
        preprocess_logits_for_metrics: PreprocessLogits | None = None,
    ) -> None:
        self.model, self.lora_config, self._start = base_and_adapter(model, lora_config)
        self.training_config = training_config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.data = data_of(self._start, data or DataConfig())
        self.result: Result | None = None
        self._hooks = make_hooks(callbacks, compute_metrics, preprocess_logits_for_metrics)

    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        config = RunConfig(
            model=model_config(self._start, self.model.model_name),
            method="lora",
            data=self.data,
            training=with_resume(self.training_config, resume_from_checkpoint),
            lora=self.lora_config,
            parallel=getattr(self.training_config, "parallel", None) or ParallelConfig(),
        )
        return TrainRequest(self.model, config, train, eval_data, hooks=self._hooks)

    @staticmethod
    def load_lora_model(
        base_model_name: str, lora_adapter_path: str, device: torch.device | None = None
    ) -> tuple[Any, Any]:
        """(model, tokenizer) of a base with a saved adapter, in eval mode.

        Args:
            base_model_name: the base that the adapter was trained on.
            lora_adapter_path: the adapter's folder.
            device: None takes the best one.

        Raises:
            InputNotFoundError: no adapter there. ModelError: it was trained on another base.
        """
        adapter_config(lora_adapter_path)  # refused before the base is loaded
        tokenizer = load_tokenizer(saved_tokenizer(lora_adapter_path) or base_model_name)
        base = load_causal_lm(base_model_name, device=device)
        return load_adapter(base, lora_adapter_path).eval(), tokenizer
