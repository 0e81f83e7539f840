"""TrainingConfig and MultiGPUTrainingConfig with the documented fields, order and defaults."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from .limits import AtLeastOne, Fraction, NotNegative, NotNegativeFloat, Rule
from .parallel import ParallelConfig
from .section import GIVEN, RECORD, build, carried, explicitly_set, named_arguments, section, validate_keys
from .sections import CheckpointConfig, EvaluationConfig, OptimizerConfig, RuntimeConfig, ScheduleConfig


@section
class TrainingConfig:
    """The documented training settings; the five sections at the end are keyword-only."""

    SECTION: ClassVar[str] = "training"

    learning_rate: Fraction = 2e-5
    """Peak learning rate of the schedule.
    ja: 学習率の最大値。
    """
    batch_size: AtLeastOne = 4
    """Micro-batch size per device, in rows. On a GPU the plan chooses it, with the accumulation, where neither is set.
    ja: デバイスごとのマイクロバッチの行数。GPU では、蓄積回数とともに指定しなければ計画が選びます（積は変わりません）。
    """
    gradient_accumulation_steps: AtLeastOne = 4
    """Gradient accumulation: batch_size times this is the number of rows of an optimizer step, over all devices.
    ja: 勾配の蓄積回数。batch_size との積が、全デバイスを合わせた 1 ステップの行数です。
    """
    num_epochs: AtLeastOne = 3
    """Passes over the training rows.
    ja: 学習データを繰り返す回数。
    """
    warmup_steps: NotNegative = 100
    """Steps of linear warm-up; where it is not set, it is capped at a tenth of all steps.
    ja: 学習率を直線的に上げるステップの数。指定しなければ全ステップの 1 割までにします。
    """
    max_grad_norm: NotNegativeFloat = 1.0
    """Global gradient norm above which gradients are scaled down; 0 turns clipping off.
    ja: 勾配全体のノルムの上限。超えた勾配は縮小します。0 で無効です。
    """
    eval_steps: AtLeastOne = 100
    """Optimizer steps between evaluations; where it is not set, a run evaluates about ten times.
    ja: 評価の間隔（最適化ステップ）。指定しなければ、1 回の学習で 10 回ほど評価します。
    """
    save_steps: AtLeastOne = 500
    """Optimizer steps between checkpoints.
    ja: チェックポイントの間隔（最適化ステップ）。
    """
    logging_steps: AtLeastOne = 10
    """Optimizer steps between lines of progress.
    ja: 進捗を記録する間隔（最適化ステップ）。
    """
    output_dir: Annotated[
        str, Field(pattern=r"\S"), Rule("フォルダー名を書いてください。", "it must name a folder.")
    ] = "./outputs"
    """Folder of the run: model, checkpoints, metrics.
    ja: 実行のフォルダー。モデル、チェックポイント、メトリクスを保存します。
    """
    fp16: bool = True
    """Mixed precision, in the type that the device does well (bf16 where it has it); False computes in fp32.
    ja: 混合精度で計算するかどうか。型はデバイスの得意なもの（対応していれば bf16）。False は fp32 で計算します。
    """
    gradient_checkpointing: bool = True
    """Trade time for memory; where it is not set, it is on only if memory would be short without it.
    ja: 計算時間と引き換えにメモリーを節約するかどうか。指定しなければ、メモリーが不足するときだけ使います。
    """
    ddp: bool = False
    """Data-parallel training over all processes of the launcher.
    ja: ランチャーの全プロセスでデータ並列学習をするかどうか。
    """
    local_rank: Annotated[int, Field(ge=-1)] = -1
    """Rank on this machine; -1 takes the launcher's.
    ja: この PC でのランク。-1 はランチャーの値に従います。
    """
    world_size: AtLeastOne = 1
    """Processes of the run; 1 takes the launcher's.
    ja: 実行のプロセス数。1 はランチャーの値に従います。
    """
    saves_per_epoch: AtLeastOne | None = dataclasses.field(default=None, kw_only=True)
    """Checkpoints an epoch, at even distances, the last one at its end; instead of save_steps.
    ja: 1 エポックあたりのチェックポイントの数。等間隔で、最後はエポックの終わりです。save_steps の代わりに使います。
    """
    evals_per_epoch: AtLeastOne | None = dataclasses.field(default=None, kw_only=True)
    """Evaluations an epoch, at even distances, the last one at its end; instead of eval_steps.
    ja: 1 エポックあたりの評価の回数。等間隔で、最後はエポックの終わりです。eval_steps の代わりに使います。
    """
    save_only_model: bool = dataclasses.field(default=False, kw_only=True)
    """Checkpoints hold the trained weights without the optimizer's state: smaller, and no run resumes from them. What
    SIGTERM or Ctrl-C saves stays whole.
    ja: チェックポイントに、学習した重みだけを保存し、オプティマイザーの状態は保存しないかどうか。小さくなりますが、再開には使えません。SIGTERM と Ctrl-C のときの保存は完全なものです。
    """
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig, kw_only=True)
    """Optimizer and its hyperparameters.
    ja: オプティマイザーとそのハイパーパラメーター。
    """
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig, kw_only=True)
    """Learning-rate schedule.
    ja: 学習率のスケジュール。
    """
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig, kw_only=True)
    """Checkpoints and resuming.
    ja: チェックポイントと再開。
    """
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig, kw_only=True)
    """Precision, seed, logging, early stopping.
    ja: 精度、シード、記録、早期終了。
    """
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig, kw_only=True)
    """Verdict and answers of a run with evaluation data.
    ja: 評価データがある学習の判定と回答。
    """


def _documented(
    strategy: str = "ddp",
    max_memory_per_gpu: dict[int, str] | None = None,
    pipeline_parallel_size: int = 1,
    tensor_parallel_size: int = 1,
    *,
    deepspeed_stage: int | None = None,
    parallel: ParallelConfig | None = None,
    **kwargs: Any,
) -> None:
    """The signature of MultiGPUTrainingConfig."""


_SIGNATURE = inspect.signature(_documented)
_POSITIONAL = list(_SIGNATURE.parameters)[:4]
_OF_PARALLEL = (*_POSITIONAL, "deepspeed_stage")


class MultiGPUTrainingConfig(TrainingConfig):
    """TrainingConfig with the documented parallel fields in front.

    `parallel` holds them (and those that only a YAML names: processes, max_restarts, ...); the attributes `strategy`
    and so on read and write it. Written by hand, since dataclass inheritance would put `strategy` last.
    """

    ALSO: ClassVar[tuple[str, ...]] = (*_OF_PARALLEL, "parallel")
    parallel: ParallelConfig

    if TYPE_CHECKING:
        strategy: str
        max_memory_per_gpu: dict[int, str] | None
        pipeline_parallel_size: int
        tensor_parallel_size: int
        deepspeed_stage: int | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        values = named_arguments(MultiGPUTrainingConfig, _POSITIONAL, args, kwargs)
        of_parallel = {name: values.pop(name) for name in _OF_PARALLEL if name in values}
        given = values.pop("parallel", None)
        validate_keys(MultiGPUTrainingConfig, [name for name in values if name != GIVEN])
        parallel = build(ParallelConfig, {} if given is None else given)
        super().__init__(**values)
        # A copy: two configurations that replace() or copy() made must not change each other's strategy.
        self.__dict__["parallel"] = dataclasses.replace(parallel, **of_parallel)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_PARALLEL:
            setattr(self.parallel, name, value)
        elif name == "parallel":
            self.__dict__[name] = build(ParallelConfig, value)
        else:
            super().__setattr__(name, value)

    @property
    def _given(self) -> frozenset[str]:
        own: frozenset[str] = self.__dict__[GIVEN]
        return own | (explicitly_set(self.parallel) & frozenset(_OF_PARALLEL))

    def __copy__(self) -> MultiGPUTrainingConfig:
        return dataclasses.replace(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MultiGPUTrainingConfig):
            return NotImplemented
        return bool(super().__eq__(other)) and self.parallel == other.parallel

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return super().__repr__().removesuffix(")") + f", parallel={self.parallel!r})"


def _through(name: str) -> property:
    return property(lambda self: getattr(self.parallel, name))


for _name in _OF_PARALLEL:
    setattr(MultiGPUTrainingConfig, _name, _through(_name))
MultiGPUTrainingConfig.__signature__ = _SIGNATURE  # type: ignore[attr-defined]
MultiGPUTrainingConfig.__dataclass_fields__ = {
    GIVEN: RECORD,
    "parallel": carried("parallel"),
    **TrainingConfig.__dataclass_fields__,
}
