"""TrainingConfig and MultiGPUTrainingConfig with the documented fields, order and defaults."""

from __future__ import annotations

import dataclasses
import inspect
import math
from typing import Any, ClassVar

from pydantic import model_validator
from pydantic_core import ArgsKwargs

from .parallel import ParallelConfig
from .section import build, refuse_unknown, require, section
from .sections import CheckpointConfig, OptimizerConfig, RuntimeConfig, ScheduleConfig

_SECTIONS: dict[str, type] = {
    "optimizer": OptimizerConfig,
    "schedule": ScheduleConfig,
    "checkpoint": CheckpointConfig,
    "runtime": RuntimeConfig,
}


@section
class TrainingConfig:
    """The documented training settings; the four sections at the end are keyword-only."""

    SECTION: ClassVar[str] = "training"

    learning_rate: float = 2e-5
    """Peak learning rate of the schedule."""
    batch_size: int = 4
    """Most rows that a device holds at a time."""
    gradient_accumulation_steps: int = 4
    """Times batch_size: rows of an optimizer step, over all devices together."""
    num_epochs: int = 3
    """Passes over the training rows."""
    warmup_steps: int = 100
    """Steps of linear warm-up; left alone, it is capped at a tenth of all steps."""
    max_grad_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 switches clipping off."""
    eval_steps: int = 100
    """Optimizer steps between evaluations."""
    save_steps: int = 500
    """Optimizer steps between checkpoints."""
    logging_steps: int = 10
    """Optimizer steps between lines of progress."""
    output_dir: str = "./outputs"
    """Folder of the run: model, checkpoints, metrics."""
    fp16: bool = True
    """Mixed precision: what the machine does well (bf16 where it has it); False computes in fp32."""
    gradient_checkpointing: bool = True
    """Trade time for memory; left alone, it is on where memory would be short without it."""
    ddp: bool = False
    """Data parallel training over all processes of the launcher."""
    local_rank: int = -1
    """Rank on this machine; -1 takes the launcher's."""
    world_size: int = 1
    """Processes of the run; 1 takes the launcher's."""
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig, kw_only=True)
    """Optimizer and its numbers."""
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig, kw_only=True)
    """Learning-rate schedule."""
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig, kw_only=True)
    """Checkpoints and resuming."""
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig, kw_only=True)
    """Precision, seed, logging, early stopping."""

    @model_validator(mode="before")
    @classmethod
    def _sections_from_mappings(cls, values: Any) -> Any:
        kwargs = values.kwargs if isinstance(values, ArgsKwargs) else values
        if not kwargs:
            return values
        changed: dict[str, object] = {
            key: build(kind, kwargs[key]) for key, kind in _SECTIONS.items() if isinstance(kwargs.get(key), dict)
        }
        return ArgsKwargs(values.args if isinstance(values, ArgsKwargs) else (), {**kwargs, **changed})

    def __post_init__(self) -> None:
        require(
            0 < self.learning_rate < 1 and math.isfinite(self.learning_rate),
            "training.learning_rate",
            self.learning_rate,
            "0 より大きく 1 より小さくしてください。",
            "it must be above 0 and below 1.",
        )
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "num_epochs",
            "eval_steps",
            "save_steps",
            "logging_steps",
            "world_size",
        ):
            value = getattr(self, name)
            require(value >= 1, f"training.{name}", value, "1 以上にしてください。", "it must be at least 1.")
        require(
            self.warmup_steps >= 0,
            "training.warmup_steps",
            self.warmup_steps,
            "0 以上にしてください。",
            "it must not be negative.",
        )
        require(
            self.max_grad_norm >= 0 and math.isfinite(self.max_grad_norm),
            "training.max_grad_norm",
            self.max_grad_norm,
            "0 以上にしてください（0 で無効）。",
            "it must not be negative (0 switches clipping off).",
        )
        require(
            bool(self.output_dir.strip()),
            "training.output_dir",
            self.output_dir,
            "フォルダー名を書いてください。",
            "it must name a folder.",
        )
        require(
            self.local_rank >= -1,
            "training.local_rank",
            self.local_rank,
            "-1 以上にしてください。",
            "it must be -1 or a rank.",
        )


class MultiGPUTrainingConfig(TrainingConfig):
    """TrainingConfig with the documented parallel fields in front.

    Written by hand: plain dataclass inheritance would put `strategy` last, the documentation puts it first.
    """

    def __init__(
        self,
        strategy: str = "ddp",
        max_memory_per_gpu: dict[int, str] | None = None,
        pipeline_parallel_size: int = 1,
        tensor_parallel_size: int = 1,
        *,
        deepspeed_stage: int | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(TrainingConfig, kwargs)
        super().__init__(**kwargs)
        self.parallel = build(
            ParallelConfig,
            {
                "strategy": strategy,
                "max_memory_per_gpu": max_memory_per_gpu,
                "pipeline_parallel_size": pipeline_parallel_size,
                "tensor_parallel_size": tensor_parallel_size,
                "deepspeed_stage": deepspeed_stage,
            },
        )
        self.strategy = self.parallel.strategy
        self.max_memory_per_gpu = self.parallel.max_memory_per_gpu
        self.pipeline_parallel_size = self.parallel.pipeline_parallel_size
        self.tensor_parallel_size = self.parallel.tensor_parallel_size
        self.deepspeed_stage = self.parallel.deepspeed_stage


# pydantic leaves the parent's signature on subclasses; help() and editors shall show the documented one.
MultiGPUTrainingConfig.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    list(inspect.signature(MultiGPUTrainingConfig.__init__).parameters.values())[1:]
)
