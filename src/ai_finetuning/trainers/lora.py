"""LoRAFinetuningTrainer: trains adapters, on 16-bit or quantized bases."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..config.parallel import ParallelConfig
from ..config.run import RunConfig
from ..config.training import TrainingConfig
from ..execution.request import TrainRequest, adapter_settings
from ..execution.result import Result
from ..execution.sources import with_resume
from ..execution.trainer_hooks import ComputeMetrics, PreprocessLogits, make_hooks
from ..inference.usable import usable
from ..models.adapter_folder import adapter_config
from ..models.adapters import load_adapter, saved_tokenizer
from ..models.base_model import BaseModel
from ..models.hub import locate_base
from ..models.loading import bits_as_trained, load_causal_lm
from ..models.options import validate_bits
from ..models.source import find_model
from ..models.tokenizers import load_tokenizer
from ..models.wrong_objects import require_kind, require_text
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
        swapped = isinstance(lora_config, TrainingConfig) and isinstance(training_config, LoRAConfig)
        require_kind("lora_config", lora_config, LoRAConfig, why="training_config" if swapped else "")
        require_kind("training_config", training_config, TrainingConfig)
        require_kind("data", data or DataConfig(), DataConfig)
        self.model, self.lora_config, self._start = base_and_adapter(model, lora_config)
        self._given = model if isinstance(model, nn.Module) else None
        self.training_config = training_config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.data = data_of(self._start, data or DataConfig())
        self.result: Result | None = None
        self._hooks = make_hooks(callbacks, compute_metrics, preprocess_logits_for_metrics)

    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        config = RunConfig(
            model=model_config(self._start, self.model),
            method="lora",
            data=self.data,
            training=with_resume(self.training_config, resume_from_checkpoint),
            lora=adapter_settings(self.model, self.lora_config),
            parallel=getattr(self.training_config, "parallel", None) or ParallelConfig(),
        )
        return TrainRequest(self.model, config, train, eval_data, hooks=self._hooks)

    @staticmethod
    def load_lora_model(
        base_model_name: str | None,
        lora_adapter_path: str,
        device: torch.device | None = None,
        *,
        bits: int | None = None,
    ) -> tuple[Any, Any]:
        """(model, tokenizer) of a base with a saved adapter, in eval mode.

        Args:
            base_model_name: the base that the adapter was trained on; None takes the one that the adapter names.
            lora_adapter_path: folder of the adapter, its run or a checkpoint.
            device: None takes the best one.
            bits: of the base: 4, 8, or 16 for no quantization; None takes what it had in training.

        Raises:
            InputNotFoundError: no adapter there. ModelError: it was trained on another base.
        """
        validate_bits(bits, "bits", sixteen=True)
        if base_model_name is not None:
            require_text("base_model_name", base_model_name)
        require_text("lora_adapter_path", os.fspath(lora_adapter_path))
        adapter = os.fspath(lora_adapter_path)
        if os.path.isdir(os.path.expanduser(adapter)):
            adapter = usable(adapter).path
        adapter_config(adapter)  # refused before the base is loaded
        base = locate_base(adapter, base_model_name)
        tokenizer = load_tokenizer(saved_tokenizer(adapter) or base)
        source = find_model(base)
        held = bits_as_trained(adapter, source, bits)
        model = load_causal_lm(source, device=device, load_in_4bit=held == 4, load_in_8bit=held == 8)
        return load_adapter(model, adapter).eval(), tokenizer
