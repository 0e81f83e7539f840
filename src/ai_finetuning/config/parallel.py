"""ParallelConfig: who holds which weights and sees which data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .limits import AtLeastOne, NotNegative, PositiveFloat, Processes, Rule
from .section import require, section

MEMORY_SIZE = r"^\d+(\.\d+)?\s*(GB|GiB|MB|MiB)$"
_MemorySize = Annotated[
    str,
    Field(pattern=MEMORY_SIZE),
    Rule("22GB や 22GiB のように書いてください。", "write it like 22GB or 22GiB."),
]


@section
class ParallelConfig:
    """The documented fields of MultiGPUTrainingConfig as a section of the YAML."""

    SECTION: ClassVar[str] = "parallel"

    strategy: Literal["ddp", "model_parallel", "pipeline", "fsdp", "tensor", "auto"] = "ddp"
    """How the work is spread over devices.
    ja: 複数のデバイスへの分け方。
    """
    max_memory_per_gpu: dict[NotNegative, _MemorySize] | None = None
    """Maximum memory that `model_parallel` may use on each GPU, by GPU index, as `22GB` (10^9 bytes each) or `22GiB`
    (2^30); null for all free memory.
    ja: `model_parallel` が GPU ごとに使うメモリーの上限。GPU の番号に `22GB`（10^9 単位）や `22GiB`（2^30 単位）と書きます。null は空きメモリー全部。
    """
    pipeline_parallel_size: AtLeastOne = 1
    """Pipeline stages.
    ja: パイプラインの段数。
    """
    tensor_parallel_size: AtLeastOne = 1
    """Ranks that share each layer.
    ja: 1 つの層を分け合うランクの数。
    """
    pipeline_schedule: Literal["GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBV"] = "1F1B"
    """Order of the micro-batches in a pipeline.
    ja: パイプラインでのマイクロバッチの順序。
    """
    deepspeed_stage: Literal[2, 3] | None = None
    """DeepSpeed ZeRO (an extra) with `ddp`: 2 shards gradients and optimizer states over the processes, 3 weights too;
    `fsdp` does the latter without DeepSpeed.
    ja: `ddp` で使う DeepSpeed ZeRO（追加パッケージ）。2 は勾配とオプティマイザーの状態を、3 は重みもプロセス間で分割します。`fsdp` は 3 と同じことを追加なしで行います。
    """
    processes: Processes | None = None
    """Processes to start on this machine; null for one process per GPU, or one on a CPU. No effect under a launcher.
    ja: この PC で起動するプロセスの数。null は GPU ごとに 1 つ（CPU では 1 つ）。torchrun などから起動したときは使いません。
    """
    max_restarts: NotNegative = 0
    """How often processes that died are restarted, from the last checkpoint.
    ja: 異常終了したプロセスを、最後のチェックポイントから再起動する回数の上限。
    """
    timeout_seconds: PositiveFloat = 1800.0
    """Seconds without any progress after which a run of several processes reports which one is behind, and ends.
    ja: 複数プロセスの学習がこの秒数だけ進まないとき、遅れているプロセスを示して終了します。
    """

    def __post_init__(self) -> None:
        """DeepSpeed shards replicas; nothing else is split."""
        require(
            self.deepspeed_stage is None
            or (self.strategy == "ddp" and self.pipeline_parallel_size == self.tensor_parallel_size == 1),
            "parallel.deepspeed_stage",
            self.deepspeed_stage,
            "strategy: ddp で、pipeline_parallel_size と tensor_parallel_size が 1 のときだけ使えます（いまは strategy: "
            f"{self.strategy}、{self.pipeline_parallel_size}、{self.tensor_parallel_size}）。重みを分割するなら "
            "deepspeed_stage を消して strategy: fsdp にしてください。",
            f"it requires strategy: ddp and sizes of 1 (strategy: {self.strategy}, pipeline_parallel_size "
            f"{self.pipeline_parallel_size}, tensor_parallel_size {self.tensor_parallel_size}); to divide weights "
            "otherwise, leave deepspeed_stage out and use strategy: fsdp.",
        )
