"""transformers' callbacks on this toolkit's loop: its state, control and arguments, filled from the run's own.

Events that are called: on_init_end, on_train_begin, on_epoch_begin, on_step_begin, on_step_end, on_log, on_evaluate,
on_save, on_epoch_end, on_train_end. What one asks for by `control` on any process counts on all of them.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ..config.run_folder import METRICS
from ..engine.hooks import Callback, Control
from ..engine.metrics import read_metrics
from ..engine.state import Run
from ..engine.train_state import TrainState
from ..errors import ConfigError
from ..messages import warn
from ..parallel.processes import launched
from .resolve import RunPlan

METRIC = "eval_loss"
_FLAGS = ("should_training_stop", "should_save", "should_evaluate", "should_log")
_LOGGED = ("loss", "grad_norm", "learning_rate", "epoch")


@dataclass(frozen=True)
class CallbackArguments:
    """What callbacks read of transformers.TrainingArguments, under its names; the run is not changed through it.

    A TrainingArguments itself would set up Accelerate's state and devices as it is made.
    """

    output_dir: str
    num_train_epochs: float
    max_steps: int
    learning_rate: float
    per_device_train_batch_size: int
    gradient_accumulation_steps: int
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    lr_scheduler_type: str
    logging_steps: int
    eval_steps: int
    save_steps: int
    save_total_limit: int
    eval_strategy: IntervalStrategy
    load_best_model_at_end: bool
    seed: int
    fp16: bool
    bf16: bool
    gradient_checkpointing: bool
    report_to: list[str]
    run_name: str
    world_size: int
    process_index: int
    local_process_index: int
    device: str
    logging_strategy: IntervalStrategy = IntervalStrategy.STEPS
    save_strategy: SaveStrategy = SaveStrategy.STEPS
    metric_for_best_model: str = METRIC
    greater_is_better: bool = False
    logging_first_step: bool = False
    eval_on_start: bool = True
    eval_delay: float = 0
    push_to_hub: bool = False

    @property
    def per_device_eval_batch_size(self) -> int:
        """An evaluation's batches are as large as a step's micro-batches."""
        return self.per_device_train_batch_size

    @property
    def local_rank(self) -> int:
        """-1 in a run of one process, as in transformers."""
        return self.local_process_index if self.world_size > 1 else -1

    def to_dict(self) -> dict[str, Any]:
        """The values by name."""
        return {
            name: value.value if isinstance(value, IntervalStrategy | SaveStrategy) else value
            for name, value in asdict(self).items()
        }

    def to_sanitized_dict(self) -> dict[str, Any]:
        """The values by name, as trackers take them."""
        return {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in self.to_dict().items()
        }

    def to_json_string(self) -> str:
        """The values as JSON."""
        return json.dumps(self.to_dict(), indent=2)


def arguments_of(plan: RunPlan) -> CallbackArguments:
    """The settings of a run under transformers' names."""
    training, here = plan.request.config.training, launched()
    evaluates = bool(plan.data.eval_data)
    return CallbackArguments(
        output_dir=training.output_dir,
        num_train_epochs=float(training.num_epochs),
        max_steps=training.schedule.max_steps or -1,
        learning_rate=training.learning_rate,
        per_device_train_batch_size=plan.derived.batch_size,
        gradient_accumulation_steps=plan.derived.gradient_accumulation_steps,
        warmup_steps=plan.derived.warmup_steps,
        weight_decay=training.optimizer.weight_decay,
        max_grad_norm=training.max_grad_norm,
        lr_scheduler_type=training.schedule.name,
        logging_steps=training.logging_steps,
        eval_steps=_interval(
            plan.derived.eval_steps or training.eval_steps, training.evals_per_epoch, plan.loader.steps(0)
        ),
        save_steps=_interval(training.save_steps, training.saves_per_epoch, plan.loader.steps(0)),
        save_total_limit=training.checkpoint.save_total_limit,
        eval_strategy=IntervalStrategy.STEPS if evaluates else IntervalStrategy.NO,
        load_best_model_at_end=training.checkpoint.load_best and evaluates,
        seed=training.runtime.seed,
        fp16=plan.precision.name == "fp16",
        bf16=plan.precision.name == "bf16",
        gradient_checkpointing=plan.derived.gradient_checkpointing,
        report_to=list(training.runtime.report_to),
        run_name=Path(training.output_dir).name,
        world_size=here.size,
        process_index=here.rank,
        local_process_index=here.local_rank,
        device=str(plan.device),
    )


def _interval(steps: int, per_epoch: int | None, steps_of_epoch: int) -> int:
    """The steps between two; of so many an epoch the longest distance, since transformers knows one number."""
    return steps if per_epoch is None else math.ceil(steps_of_epoch / per_epoch)


class TransformersCallbacks(Callback):
    """Calls transformers.TrainerCallback objects at the loop's events.

    Args:
        plan: of the run, with the callbacks in its request.
        run: what the loop works with.
    """

    def __init__(self, plan: RunPlan, run: Run) -> None:
        self._plan, self._run = plan, run
        self._callbacks = plan.request.hooks.callbacks
        self._arguments = arguments_of(plan)
        self._control = TrainerControl()
        here, training = launched(), plan.request.config.training
        self._state = TrainerState(
            max_steps=run.total_steps,
            num_train_epochs=math.ceil(run.total_steps / run.loader.steps(0)),
            logging_steps=training.logging_steps,
            eval_steps=self._arguments.eval_steps,
            save_steps=self._arguments.save_steps,
            train_batch_size=plan.derived.batch_size,
            is_local_process_zero=here.local_rank == 0,
            is_world_process_zero=here.is_main,
            stateful_callbacks=[],
        )
        self._warned = False

    def _call(self, event: str, control: Control, **details: Any) -> None:
        """Calls every callback; flags go in and come out."""
        self._follow()
        for name in _FLAGS:
            setattr(self._control, name, getattr(control, name))
        for callback in self._callbacks:
            answer = getattr(callback, event)(
                self._arguments,
                self._state,
                self._control,
                model=self._run.model,
                processing_class=self._plan.tokenizer,
                optimizer=self._run.optimizer,
                lr_scheduler=None,
                train_dataloader=None,
                eval_dataloader=None,
                **details,
            )
            self._control = self._control if answer is None else answer
            if self._control.should_epoch_stop:
                raise ConfigError(
                    f"{type(callback).__name__} が control.should_epoch_stop を立てましたが、エポックの途中で次のエポックに移ることはできません。"
                    "should_training_stop を使ってください。",
                    f"{type(callback).__name__} raised control.should_epoch_stop, but an epoch cannot be left for the "
                    "next one; use should_training_stop.",
                )
        self._refuse_nothing_to_evaluate()
        for name in _FLAGS:
            setattr(control, name, getattr(self._control, name))

    def _refuse_nothing_to_evaluate(self) -> None:
        if not self._control.should_evaluate or self._run.evaluation is not None:
            return
        self._control.should_evaluate = False
        if not self._warned:
            warn(
                "コールバックが control.should_evaluate を立てましたが、評価用のデータがないので評価しません。eval_texts か eval_dataset を指定してください。",
                "a callback raised control.should_evaluate, but there is no evaluation data, so nothing is evaluated; "
                "give eval_texts or eval_dataset.",
            )
        self._warned = True

    def _follow(self) -> None:
        """TrainerState as the run stands now."""
        state = self._run.state
        self._state.global_step = state.step
        self._state.epoch = round(state.epoch + state.index / self._run.loader.steps(state.epoch), 6)
        self._state.num_input_tokens_seen = state.tokens
        if self._run.store.best.is_dir():
            self._state.best_model_checkpoint = str(self._run.store.best)

    def _log(self, control: Control, logs: dict[str, Any], step: int) -> None:
        self._state.log_history.append(logs | {"step": step})
        self._call("on_log", control, logs=logs)

    def on_train_begin(self, state: TrainState, control: Control) -> None:
        """on_init_end, then on_train_begin; a resumed run has its history and its best loss again."""
        if state.step > 0:
            rows = [row for row in read_metrics(self._metrics_path) if row["step"] <= state.step]
            every = self._state.logging_steps
            self._state.log_history = [
                (_scores(row) if "eval_loss" in row else _logs(row)) | {"step": row["step"]}
                for row in rows
                if "eval_loss" in row or ("loss" in row and row["step"] % every == 0)
            ]
        if state.best_step is not None:
            self._state.best_metric, self._state.best_global_step = state.best_loss, state.best_step
        self._call("on_init_end", control)
        self._call("on_train_begin", control)

    @property
    def _metrics_path(self) -> Path:
        return Path(self._plan.summary.output_dir) / METRICS

    def on_epoch_begin(self, state: TrainState, control: Control) -> None:
        """on_epoch_begin."""
        self._call("on_epoch_begin", control)

    def on_step_begin(self, state: TrainState, control: Control) -> None:
        """on_step_begin."""
        self._call("on_step_begin", control)

    def on_step_end(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """on_step_end."""
        self._call("on_step_end", control)

    def on_log(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """on_log with the step's loss, gradient norm and learning rate."""
        self._log(control, _logs(row), row["step"])

    def on_evaluate(self, state: TrainState, control: Control, row: dict[str, Any]) -> None:
        """on_log and on_evaluate with the metrics; what was best changes afterwards, as in transformers."""
        self._follow()
        metrics = _scores(row) | {"epoch": self._state.epoch}
        self._log(control, metrics, row["step"])
        self._call("on_evaluate", control, metrics=metrics)
        loss, best = row[METRIC], self._state.best_metric
        if math.isfinite(loss) and (best is None or loss < best):
            self._state.best_metric, self._state.best_global_step = loss, row["step"]

    def on_save(self, state: TrainState, control: Control, folder: Path) -> None:
        """on_save."""
        self._call("on_save", control)

    def on_epoch_end(self, state: TrainState, control: Control) -> None:
        """on_epoch_end."""
        self._call("on_epoch_end", control)

    def on_train_end(self, state: TrainState, control: Control) -> None:
        """on_train_end."""
        self._call("on_train_end", control)


def _logs(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in _LOGGED}


def _scores(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name.startswith("eval_")}
