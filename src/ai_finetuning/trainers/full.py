"""FullFinetuningTrainer: trains all weights."""

from __future__ import annotations

from typing import Any

from ..config.data import DataConfig
from ..config.parallel import ParallelConfig
from ..config.run import RunConfig
from ..config.training import TrainingConfig
from ..execution.request import TrainRequest, model_settings
from ..execution.result import Result
from ..execution.sources import with_resume
from ..execution.trainer_hooks import ComputeMetrics, PreprocessLogits, make_hooks
from ..models.base_model import BaseModel
from ..models.wrong_objects import require_kind
from .trainer import Trainer, require_model


class FullFinetuningTrainer(Trainer):
    """Fine-tunes all weights of a model.

    Args:
        model: the base; loaded on first use.
        config: training settings.
        train_dataset, eval_dataset: TextDataset, or anything that train() takes as texts.
        use_accelerate: run the step through Hugging Face Accelerate; the result is the same.
        data: max_length, packing and what else turns rows into tokens.
        callbacks: transformers.TrainerCallback objects or classes, called on every process.
        compute_metrics: from an EvalPrediction to numbers by name, after every evaluation. One row for each evaluation
            row, in their order: `predictions[:, t]` is the id predicted after token t and is to be compared with
            `label_ids[:, t + 1]`; -100 takes no loss, and pads both.
        preprocess_logits_for_metrics: called with a row's logits [1, tokens, vocabulary] and labels [1, tokens]; what
            it returns takes the place of the ids.

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
        callbacks: list[Any] | None = None,
        compute_metrics: ComputeMetrics | None = None,
        preprocess_logits_for_metrics: PreprocessLogits | None = None,
    ) -> None:
        require_model(model)
        require_kind("config", config, TrainingConfig)
        require_kind("data", data or DataConfig(), DataConfig)
        self.model = model
        self.config = config
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.use_accelerate = use_accelerate
        self.data = data or DataConfig()
        self.result: Result | None = None
        self._hooks = make_hooks(callbacks, compute_metrics, preprocess_logits_for_metrics)

    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        config = RunConfig(
            model=model_settings(self.model),
            method="full",
            data=self.data,
            training=with_resume(self.config, resume_from_checkpoint),
            parallel=getattr(self.config, "parallel", None) or ParallelConfig(),
        )
        return TrainRequest(self.model, config, train, eval_data, self.use_accelerate, hooks=self._hooks)
