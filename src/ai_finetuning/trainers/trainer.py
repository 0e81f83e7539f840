"""What the documented trainers have in common: callbacks, evaluate() and save_model(), under transformers' names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from ..config.data import DataConfig
from ..config.lora import LoRAConfig
from ..errors import ConfigError
from ..execution.adapter_start import Start
from ..execution.artifacts import save_trained
from ..execution.execute import execute
from ..execution.request import TrainRequest
from ..execution.result import Result
from ..execution.score import score
from ..execution.sources import choose_sources
from ..execution.trainer_hooks import TrainerHooks, as_callback
from ..models.base_model import BaseModel
from ..models.wrong_objects import wrong_model
from ..parallel.processes import launched
from .starting import base_and_adapter


def require_model(model: Any) -> None:
    """Refuses anything but a model of this toolkit, with what to write instead.

    Raises:
        ConfigError: with what was given.
    """
    if not isinstance(model, BaseModel):
        raise wrong_model(model)


class Trainer(ABC):
    """A model, its data and what is called while it trains; subclasses say by which method it trains."""

    model: BaseModel
    train_dataset: Any
    eval_dataset: Any
    data: DataConfig
    result: Result | None
    _hooks: TrainerHooks
    _last: TrainRequest | None = None  # of the last train()
    _start: Start | None = None  # the adapter that training goes on from
    _given: nn.Module | None = None  # a module that has it

    def _take(self, model: Any, lora: LoRAConfig | None) -> LoRAConfig | None:
        """Keeps the base of what a trainer of adapters or of all weights was given; the adapter's settings, None without one.

        Raises:
            ConfigError: it is no model, or none that training can go on from.
        """
        if lora is None:
            require_model(model)
            self.model = model
            return None
        self.model, lora, self._start = base_and_adapter(model, lora)
        self._given = model if isinstance(model, nn.Module) else None
        return lora

    @abstractmethod
    def _request(self, train: Any, eval_data: Any, resume_from_checkpoint: str | None = None) -> TrainRequest:
        """What train() asks for."""

    def train(
        self, train_texts: Any = None, eval_texts: Any = None, resume_from_checkpoint: str | None = None
    ) -> nn.Module:
        """Trains, saves the model or the adapter to output_dir and returns the module in eval mode.

        Args:
            train_texts, eval_texts: strings, rows, conversations, a `datasets.Dataset`, or a path.
            resume_from_checkpoint: `auto`, a checkpoint's folder or a run's folder.

        Raises:
            ToolkitError: with the reason and the way out, before a weight is loaded wherever that can be known.
        """
        train, eval_data = choose_sources(self, train_texts, eval_texts)
        self._last = self._request(train, eval_data, resume_from_checkpoint)
        self.result = execute(self._last)
        return self.result.model

    def evaluate(self, eval_dataset: Any = None) -> dict[str, Any]:
        """Scores rows with the model as it is now: before train() the base, or the module with an adapter that the trainer
        was given; after it what was trained.

        Args:
            eval_dataset: anything that train() takes as texts; None takes the evaluation data of the last train(), the
                trainer's eval_dataset or data.eval.

        Returns:
            eval_loss, eval_perplexity, eval_bits_per_character, eval_tokens, and what compute_metrics adds. Of several
            processes every one has to call it; the first one computes.

        Raises:
            ToolkitError: there is no evaluation data, or it cannot be scored.
        """
        if eval_dataset is not None:
            request = self._request(None, eval_dataset)
        elif self._last is not None and self._last.eval_data is not None:
            request = replace(self._last, hooks=self._hooks)
        else:
            request = self._request(*choose_sources(self, None, None))
        return score(request, self.result.model if self.result is not None else self._given)

    def save_model(self, output_dir: str | None = None) -> None:
        """Writes what was trained, model or adapter, with tokenizer and generation config.

        Args:
            output_dir: a new folder; None writes into the run's folder once more. Of several processes the first one
                writes.

        Raises:
            ConfigError: nothing is trained yet, or the folder holds something else.
            StorageError: it cannot be written.
        """
        if self.result is None:
            raise ConfigError(
                "save_model() で保存できるものがまだありません。先に train() を呼んでください。",
                "save_model() has nothing to save yet; call train() first.",
            )
        if launched().is_main:
            place = Path(output_dir) if output_dir is not None else self.result.folder
            save_trained(self.result, self.model.ensure_tokenizer(), place)

    def add_callback(self, callback: Any) -> None:
        """Adds a transformers.TrainerCallback, or one of a class; the next train() calls it."""
        self._hooks = replace(self._hooks, callbacks=(*self._hooks.callbacks, as_callback(callback)))

    def pop_callback(self, callback: Any) -> Any:
        """Removes a callback, or the first one of a class, and returns it; None where there is none."""
        for item in self._hooks.callbacks:
            if item is callback or (isinstance(callback, type) and isinstance(item, callback)):
                kept = tuple(other for other in self._hooks.callbacks if other is not item)
                self._hooks = replace(self._hooks, callbacks=kept)
                return item
        return None

    def remove_callback(self, callback: Any) -> None:
        """Removes a callback, or the first one of a class."""
        self.pop_callback(callback)
