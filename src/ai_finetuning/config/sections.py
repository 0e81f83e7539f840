"""The five keyword-only sections of TrainingConfig."""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .limits import (
    AtLeastOne,
    FractionOrOne,
    FractionOrZero,
    NotNegativeFloat,
    PositiveFloat,
    RatioFromOne,
    Rule,
    Share,
)
from .section import section

OPTIMIZERS = ("adamw", "adamw_8bit", "muon")

_Start = Annotated[
    Annotated[str, Field(pattern=r"\S")] | None,
    Rule(
        "auto、チェックポイントか実行のフォルダー、または null（None）にしてください。",
        "it must be auto, the folder of a checkpoint or of a run, or null (None).",
    ),
]


@section
class OptimizerConfig:
    """How gradients become steps."""

    SECTION: ClassVar[str] = "training.optimizer"

    name: Literal["adamw", "adamw_8bit", "muon"] = "adamw"
    """AdamW (fused where the device has it); bitsandbytes' AdamW with 8-bit states; or Muon for the matrices of
    hidden layers and AdamW for the rest (all-weights training only).
    ja: AdamW（デバイスが対応していれば融合版）、状態を 8 bit で持つ bitsandbytes の AdamW、または Muon（隠れ層の行列に使い、残りは AdamW。全重みの学習のみ）。
    """
    betas: tuple[FractionOrZero, FractionOrZero] = (0.9, 0.999)
    """Decay rates of the first and the second moment.
    ja: 1 次と 2 次のモーメントの減衰率。
    """
    eps: PositiveFloat = 1e-8
    """Added to the root of the second moment.
    ja: 2 次モーメントの平方根に足す値。
    """
    weight_decay: FractionOrZero = 0.0
    """Decoupled weight decay of matrices; biases and norms have none.
    ja: 行列に適用する重み減衰（分離型）。バイアスと正規化層には適用しません。
    """
    lora_plus_ratio: RatioFromOne | None = None
    """LoRA+ (arXiv:2402.12354): learning rate of lora_B over that of lora_A (the paper suggests 16); null for equal
    rates.
    ja: LoRA+（arXiv:2402.12354）。lora_A に対する lora_B の学習率の比（論文の推奨は 16）。null は同じ学習率です。
    """


@section
class ScheduleConfig:
    """How the learning rate moves over the steps."""

    SECTION: ClassVar[str] = "training.schedule"

    name: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """Shape after the warm-up; `wsd` (warm-up, stable, decay; arXiv:2404.06395) is constant, then linear over the
    last decay_ratio of the steps.
    ja: ウォームアップ後の学習率の形。`wsd`（arXiv:2404.06395）は一定に保ち、最後の decay_ratio のステップで直線的に下げます。
    """
    max_steps: AtLeastOne | None = None
    """Optimizer steps to run; overrides num_epochs.
    ja: 実行する最適化ステップの数。num_epochs より優先します。
    """
    min_lr_ratio: Share = 0.0
    """Where cosine and wsd decay end, as a share of the learning rate.
    ja: cosine と wsd の減衰が終わる値（学習率に対する割合）。
    """
    decay_ratio: FractionOrOne = 0.2
    """Share of the steps after the warm-up in which wsd decays.
    ja: wsd で学習率を下げるステップの割合（ウォームアップ後のステップに対する割合）。
    """
    warmup_ratio: FractionOrZero | None = None
    """Linear warm-up as a share of all steps; instead of warmup_steps.
    ja: 学習率を直線的に上げるステップの、全ステップに対する割合。warmup_steps の代わりに使います。
    """


@section
class CheckpointConfig:
    """What is kept on disk, and what a run starts from."""

    SECTION: ClassVar[str] = "training.checkpoint"

    resume_from_checkpoint: _Start = None
    """`auto`, a checkpoint's folder or a run's folder; null starts from the beginning.
    ja: 再開元。`auto`、チェックポイントのフォルダー、または実行のフォルダー。null は最初から学習します。
    """
    save_total_limit: Annotated[int, Field(ge=2)] = 3
    """Checkpoints to keep; at least two, so that a damaged one leaves another.
    ja: 残すチェックポイントの数。1 つが壊れても再開できるように 2 以上です。
    """
    load_best: bool = False
    """Return the weights with the lowest evaluation loss instead of the last ones.
    ja: 最後の重みの代わりに、評価損失が最も小さい重みを返すかどうか。
    """
    restart: bool = False
    """Start from the beginning although the folder holds checkpoints that cannot be used.
    ja: 使えないチェックポイントがあるとき、最初から学習し直すかどうか。
    """
    allow_changed: bool = False
    """Resume although batch size, data, seed or model differ from the checkpoint's.
    ja: バッチサイズ、データ、シード、モデルがチェックポイントと違っていても再開するかどうか。
    """
    keep_best: bool = dataclasses.field(default=True, kw_only=True)
    """Keep the weights of the lowest evaluation loss in checkpoints/best, as a folder that generate, merge and serve
    take; where the disk has no room, only the step is named.
    ja: 評価損失が最も小さい重みを checkpoints/best に残すかどうか。generate、merge、serve にそのまま渡せるフォルダーです。ディスクに空きがなければステップだけを表示します。
    """


@section
class RuntimeConfig:
    """The device's side of a run: precision, seed, logging, early stopping."""

    SECTION: ClassVar[str] = "training.runtime"

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Precision of the computation; `auto` follows fp16= and what the device does well.
    ja: 計算の精度。`auto` は fp16= の設定と、デバイスの得意なものに従います。
    """
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    """Seed of weights, data order and dropout.
    ja: 重み、データの順序、ドロップアウトの乱数シード。
    """
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that receive the metrics besides metrics.jsonl.
    ja: metrics.jsonl のほかにメトリクスを送るトラッカー。
    """
    early_stopping_patience: AtLeastOne | None = None
    """Evaluations without improvement after which the run ends.
    ja: 評価がこの回数続けて改善しなければ学習を終えます。
    """
    early_stopping_threshold: NotNegativeFloat = 0.0
    """What counts as an improvement of the evaluation loss, in nats per token.
    ja: 改善とみなす評価損失の差（トークンあたり nat）。
    """
    progress: bool = True
    """Show a progress bar.
    ja: 進捗バーを表示するかどうか。
    """
    report_samples: Annotated[int, Field(ge=0, le=5)] = 3
    """Evaluation rows whose text and answers, before and after training, report.html shows; 0 writes no text of a row, and
    asks the model nothing for the model card either.
    ja: report.html に文と学習前後の回答を載せる評価データの行数。0 では行の文を書かず、モデルカードの回答の例も作りません。
    """
    kernels: Literal["auto", "portable", "plain"] = "auto"
    """How the step computes: `auto` takes fused blocks where they serve the model, `portable` the model's own
    modules without padding, `plain` padded rows.
    ja: ステップの計算方法。`auto` はモデルに合えば融合ブロック、`portable` はパディングなしでモデル自身の計算、`plain` はパディングした行で計算します。
    """
    offload: Literal["none", "activations", "optimizer", "auto"] = "none"
    """What waits in the host's memory while a GPU does not need it: `activations` that a forward pass saves, or the state
    of the `optimizer`; `auto` takes one where the GPU's memory would be short. The results keep their bits.
    ja: GPU が使っていない間、CPU 側のメモリーに移しておくもの。`activations` は順伝播で保存する値、`optimizer` はオプティマイザーの状態です。`auto` は GPU のメモリーが足りない見込みのときに選びます。結果は 1 ビットも変わりません。
    """


@section
class EvaluationConfig:
    """What a run with evaluation data says at its end, and what it shows on the way."""

    SECTION: ClassVar[str] = "training.evaluation"

    verdict: bool = True
    """At the end, compare the model with its base as `aift eval` does, on evaluation rows and on general prose: adopt, hold
    or reject. Takes at most a tenth of the training time or two minutes, whichever is more; not for pretrain.
    ja: 学習の最後に、`aift eval` と同じ方法で学習前のモデルと比べ、採用・保留・不採用を判定するかどうか。評価データと一般の文章を使い、時間は学習の 1 割か 2 分の長いほうまでです。pretrain では行いません。
    """
    generate: Annotated[int, Field(ge=0, le=100)] = 0
    """Fixed questions of the evaluation data that are answered at each evaluation, for samples.jsonl.
    ja: 評価のたびに回答し、samples.jsonl に書く、評価データの決まった質問の数。
    """
