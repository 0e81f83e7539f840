"""ParallelConfig: who holds which weights and sees which data."""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from .section import require, section

_SIZE = re.compile(r"^\d+(\.\d+)?\s*(GB|GiB|MB|MiB)$")


@section
class ParallelConfig:
    """The documented fields of MultiGPUTrainingConfig as a section of the YAML."""

    SECTION: ClassVar[str] = "parallel"

    strategy: Literal["ddp", "model_parallel", "pipeline", "fsdp", "tensor", "auto"] = "ddp"
    """How the work is spread over devices."""
    max_memory_per_gpu: dict[int, str] | None = None
    """Most memory that `model_parallel` may use on a GPU, as `22GB` (10^9) or `22GiB` (2^30), by GPU index; all free
    memory if not given.
    """
    pipeline_parallel_size: int = 1
    """Pipeline stages."""
    tensor_parallel_size: int = 1
    """Ranks that share each layer."""
    pipeline_schedule: Literal["GPipe", "1F1B", "Interleaved1F1B", "InterleavedZeroBubble", "ZBV"] = "1F1B"
    """Order of the micro-batches in a pipeline."""
    deepspeed_stage: Literal[2, 3] | None = None
    """ZeRO by DeepSpeed (an extra) with `ddp`: 2 divides gradients and moments over the processes, 3 weights too;
    `fsdp` does the latter without it.
    """
    processes: int | None = None
    """Processes to start on this machine; left alone, one for each GPU, and one on a CPU. Without effect under a
    launcher.
    """
    max_restarts: int = 0
    """How often processes that died are started anew, from the last checkpoint."""
    timeout_seconds: float = 1800.0
    """Seconds without any progress after which a run of several processes says which one is behind, and ends."""

    def __post_init__(self) -> None:
        for name in ("pipeline_parallel_size", "tensor_parallel_size"):
            value = getattr(self, name)
            require(value >= 1, f"parallel.{name}", value, "1 以上にしてください。", "it must be at least 1.")
        self._refuse_other_strategies()
        require(
            self.processes is None or self.processes >= 1,
            "parallel.processes",
            self.processes,
            "1 以上にしてください。",
            "it must be at least 1.",
        )
        require(
            self.max_restarts >= 0,
            "parallel.max_restarts",
            self.max_restarts,
            "0 以上にしてください。",
            "it must not be negative.",
        )
        require(
            self.timeout_seconds > 0,
            "parallel.timeout_seconds",
            self.timeout_seconds,
            "0 より大きくしてください。",
            "it must be above 0.",
        )
        for index, size in (self.max_memory_per_gpu or {}).items():
            require(
                index >= 0 and bool(_SIZE.match(size)),
                f"parallel.max_memory_per_gpu[{index}]",
                size,
                "22GB や 22GiB のように書いてください。",
                "write it like 22GB or 22GiB.",
            )

    def _refuse_other_strategies(self) -> None:
        """DeepSpeed divides replicas; nothing else is cut."""
        if self.deepspeed_stage is None:
            return
        require(
            self.strategy == "ddp" and self.pipeline_parallel_size == self.tensor_parallel_size == 1,
            "parallel.deepspeed_stage",
            self.deepspeed_stage,
            "strategy: ddp で、pipeline_parallel_size と tensor_parallel_size が 1 のときだけ使えます（いまは strategy: "
            f"{self.strategy}、{self.pipeline_parallel_size}、{self.tensor_parallel_size}）。重みを分割するなら "
            "deepspeed_stage を消して strategy: fsdp にしてください。",
            f"it goes with strategy: ddp and sizes of 1 (strategy: {self.strategy}, pipeline_parallel_size "
            f"{self.pipeline_parallel_size}, tensor_parallel_size {self.tensor_parallel_size}); to divide weights "
            "otherwise, leave deepspeed_stage out and use strategy: fsdp.",
        )
