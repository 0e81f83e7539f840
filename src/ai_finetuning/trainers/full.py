"""FullFinetuningTrainer: trains all weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..config.data import DataConfig
from ..config.model import ModelConfig
from ..config.parallel import ParallelConfig
from ..config.run import RunConfig
from ..config.training import TrainingConfig
from ..execution.execute import execute
from ..execution.request import TrainRequest
from ..execution.result import Result
from ..execution.sources import choose_sources, with_resume
from ..models.base_model import BaseModel


class FullFinetuningTrainer:
    """Fine-tunes all weights of a model.

    Args:
        model: the base; loaded on first use.
        config: training settings.
        train_dataset, eval_dataset: TextDataset, or anything that train() takes as texts.
        use_accelerate: run the step through Hugging Face Accelerate; the result is the same.
        data: max_length, packing and what else turns rows into tokens.

    Attributes:
        result: what the last train() gave: state, history, seconds, peak memory.
    """

    def __init__(
        self,
        model: BaseModel,
        config: TrainingConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        use_accelerate: bool = True,
        *,
        data: DataConfig | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.use_accelerate = use_accelerate
        self.data = data or DataConfig()
        self.result: Result | None = None

    def train(
        self, train_texts: Any = None, eval_texts: Any = None, resume_from_checkpoint: str | None = None
    ) -> nn.Module:
        """Trains, saves to config.output_dir and returns the model in eval mode.

        Args:
            train_texts, eval_texts: strings, rows, conversations, a `datasets.Dataset`, or a path.
            resume_from_checkpoint: `auto`, a checkpoint's folder or a run's folder.

        Raises:
            ToolkitError: with the reason and the way out, before a weight is loaded wherever that can be known.
        """
        config = RunConfig(
            model=ModelConfig(self.model.model_name),
            method="full",
            data=self.data,
            training=with_resume(self.config, resume_from_checkpoint),
            parallel=getattr(self.config, "parallel", None) or ParallelConfig(),
        )
        train, eval_data = choose_sources(self, train_texts, eval_texts)
        self.result = execute(TrainRequest(self.model, config, train, eval_data, self.use_accelerate))
        return self.result.model
