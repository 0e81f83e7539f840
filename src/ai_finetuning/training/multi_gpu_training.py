"""AdvancedMultiGPUTrainer: full fine-tuning under a parallel strategy."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config.data import DataConfig
from ..config.training import MultiGPUTrainingConfig
from ..models.base_model import BaseModel
from .assemble import Result
from .full_finetuning import FullFinetuningTrainer


class AdvancedMultiGPUTrainer:
    """Fine-tunes over several devices; in one process `ddp` trains as usual.

    Args:
        model: the base; loaded on first use.
        config: training settings with the strategy.
        train_dataset, eval_dataset: TextDataset, or anything that train() takes as texts.
        data: max_length, packing and what else turns rows into tokens.
    """

    def __init__(
        self,
        model: BaseModel,
        config: MultiGPUTrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *,
        data: DataConfig | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.data = data or DataConfig()
        self.result: Result | None = None

    def train(
        self, train_texts: Any = None, eval_texts: Any = None, resume_from_checkpoint: str | None = None
    ) -> nn.Module:
        """Trains, saves to config.output_dir and returns the model.

        Raises:
            NotBuiltError: a strategy that this version does not run, before anything is loaded.
            ToolkitError: with the reason and the way out.
        """
        trainer = FullFinetuningTrainer(
            self.model, self.config, self.train_dataset, self.eval_dataset, use_accelerate=False, data=self.data
        )
        trained = trainer.train(train_texts, eval_texts, resume_from_checkpoint)
        self.result = trainer.result
        return trained
