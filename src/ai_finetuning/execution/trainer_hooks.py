"""What a script hands to a trainer beside settings and data: callbacks and metrics, under transformers' names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import ConfigError
from ..parallel.plan import ParallelPlan

if TYPE_CHECKING:  # a second of imports, which only a run with hooks pays
    from transformers import EvalPrediction, TrainerCallback

ComputeMetrics = Callable[["EvalPrediction"], Mapping[str, Any]]
PreprocessLogits = Callable[[Tensor, Tensor], Any]


@dataclass(frozen=True)
class TrainerHooks:
    """Callbacks and metrics of a trainer.

    Attributes:
        callbacks: transformers.TrainerCallback objects, called on every process in this order.
        compute_metrics: from an EvalPrediction to numbers by name.
        preprocess_logits_for_metrics: what to keep of a row's logits in place of the ids of the largest ones.
    """

    callbacks: tuple[TrainerCallback, ...] = ()
    compute_metrics: ComputeMetrics | None = None
    preprocess_logits_for_metrics: PreprocessLogits | None = None

    @property
    def given(self) -> list[str]:
        """Names of the arguments that hold something."""
        values = {
            "callbacks": self.callbacks or None,
            "compute_metrics": self.compute_metrics,
            "preprocess_logits_for_metrics": self.preprocess_logits_for_metrics,
        }
        return [name for name, value in values.items() if value is not None]


def make_hooks(
    callbacks: Iterable[Any] | None,
    compute_metrics: ComputeMetrics | None,
    preprocess_logits_for_metrics: PreprocessLogits | None,
) -> TrainerHooks:
    """The hooks of a trainer's arguments; a callback may be given as its class.

    Raises:
        ConfigError: something else than a TrainerCallback or a function.
    """
    functions = {
        "compute_metrics": compute_metrics,
        "preprocess_logits_for_metrics": preprocess_logits_for_metrics,
    }
    for name, value in functions.items():
        if value is not None and not callable(value):
            raise ConfigError(
                f"{name} が {value!r} です。関数を指定してください。", f"{name} is {value!r}; it has to be a function."
            )
    if preprocess_logits_for_metrics is not None and compute_metrics is None:
        raise ConfigError(
            "preprocess_logits_for_metrics は compute_metrics に渡す値を決めるものです。compute_metrics も指定してください。",
            "preprocess_logits_for_metrics decides what compute_metrics gets; give compute_metrics too.",
        )
    made = tuple(as_callback(item) for item in callbacks or ())
    return TrainerHooks(made, compute_metrics, preprocess_logits_for_metrics)


def as_callback(value: Any) -> TrainerCallback:
    """A callback, made where its class is given.

    Raises:
        ConfigError: something else.
    """
    from transformers import TrainerCallback

    made = value() if isinstance(value, type) and issubclass(value, TrainerCallback) else value
    if not isinstance(made, TrainerCallback):
        raise ConfigError(
            f"callbacks に {value!r} があります。transformers.TrainerCallback のサブクラス、またはそのインスタンスを指定してください。",
            f"callbacks has {value!r}; it takes subclasses of transformers.TrainerCallback, or objects of them.",
        )
    return made


def validate_hooks(hooks: TrainerHooks, parallel: ParallelPlan, processes_to_start: int, eval_data: Any) -> None:
    """Refuses hooks that a run cannot call, before anything is loaded or started.

    Raises:
        ConfigError: the run's processes are yet to be started; a strategy without logits; early stopping without
            evaluation data.
    """
    if hooks.given and processes_to_start > 1:
        names = ", ".join(hooks.given)
        command = f"torchrun --nproc-per-node={processes_to_start} YOUR_SCRIPT.py"
        raise ConfigError(
            f"{names} が指定されていますが、train() はこれから {processes_to_start} 個のプロセスを起動します。"
            f"スクリプトの関数は別のプロセスに渡せません。{command} で起動してください（各プロセスがスクリプトを実行します）。",
            f"{names} given, but train() would start {processes_to_start} processes by itself, and functions of your "
            f"script cannot be handed to them. Start it with {command}, so that every process runs the script.",
        )
    _validate_logits(hooks, parallel)
    if eval_data is None and any(_stops_early(item) for item in hooks.callbacks):
        raise ConfigError(
            "EarlyStoppingCallback がありますが、評価用のデータがありません。eval_texts か eval_dataset（設定では data.eval）を指定してください。",
            "there is an EarlyStoppingCallback but no evaluation data; give eval_texts or eval_dataset (in a "
            "configuration: data.eval).",
        )


def _stops_early(callback: TrainerCallback) -> bool:
    from transformers import EarlyStoppingCallback

    return isinstance(callback, EarlyStoppingCallback)


def _validate_logits(hooks: TrainerHooks, parallel: ParallelPlan) -> None:
    if hooks.compute_metrics is None or (parallel.sizes.pp == 1 and parallel.zero_stage is None):
        return
    name = f"deepspeed_stage {parallel.zero_stage}" if parallel.zero_stage is not None else "strategy: pipeline"
    name_ja = f"{name}（pipeline_parallel_size {parallel.sizes.pp}）" if parallel.sizes.pp > 1 else name
    raise ConfigError(
        f"compute_metrics は {name_ja} では使えません（評価でロジットが得られないため）。compute_metrics を外すか、strategy: ddp・fsdp・tensor・"
        "model_parallel を使ってください。",
        f"compute_metrics cannot go with {name}, whose evaluation gives no logits; leave it out, or use strategy: ddp, "
        "fsdp, tensor or model_parallel.",
    )
