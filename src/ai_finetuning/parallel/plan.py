"""From a strategy's name and the number of processes to the strategy; refuses before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from ..messages import warn
from .collectives.mesh import Sizes, sizes_of
from .plugins import zero
from .processes import launched
from .strategies import tensor
from .strategies.pipeline import validate_pipeline


@dataclass(frozen=True)
class ParallelPlan:
    """How a run is spread.

    Attributes:
        strategy: `model_parallel`, or any other name, which sizes and sharded describe.
        sizes: stages x data ranks x ranks that share a layer.
        sharded: weights are cut over the data ranks (FSDP2).
        schedule: order of a pipeline's micro-batches.
        zero_stage: 2 or 3: gradients and moments, and weights too, are divided over the data ranks by DeepSpeed.
    """

    strategy: str = "ddp"
    sizes: Sizes = Sizes()
    sharded: bool = False
    schedule: str = "1F1B"
    zero_stage: int | None = None

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return self.sizes.pp * self.sizes.dp * self.sizes.tp

    @property
    def communicators(self) -> int:
        """Groups over which a process sends tensors of GPUs: all processes, and those of each dimension that has several."""
        return 0 if self.processes == 1 else 1 + sum(size > 1 for size in (self.sizes.pp, self.sizes.dp, self.sizes.tp))

    @property
    def in_parts(self) -> bool:
        """Whether the weights lie in several processes, none of which holds the model as it was loaded."""
        return self.sharded or self.sizes.pp > 1 or self.sizes.tp > 1 or self.zero_stage is not None

    @property
    def whole_blocks(self) -> bool:
        """Whether every layer that a process holds has all its weights on one device, as in one process."""
        divided = self.sharded or self.sizes.tp > 1 or self.zero_stage is not None
        return not divided and self.strategy != "model_parallel"

    def data_place(self, rank: int) -> tuple[int, int]:
        """(data rank, data ranks) of a process; the mesh is [pp, dp, tp]."""
        return rank // self.sizes.tp % self.sizes.dp, self.sizes.dp


def resolve_parallel_plan(
    name: str,
    *,
    processes: int | None = None,
    pipeline_parallel_size: int = 1,
    tensor_parallel_size: int = 1,
    pipeline_schedule: str = "1F1B",
    world_size: int = 1,
    local_rank: int = -1,
    deepspeed_stage: int | None = None,
) -> ParallelPlan:
    """What the settings mean for a number of processes; refuses what cannot run here.

    Args:
        processes: of the run; None: those that the launcher started.

    Raises:
        ConfigError: sizes or ranks that do not fit the processes; DeepSpeed for one process, or not installed.
    """
    here = launched()
    size = processes or here.size
    if world_size not in (1, size):
        raise ConfigError(
            f"training.world_size が {world_size} ですが、プロセスは {size} 個です。1 にするとランチャーに合わせます。",
            f"training.world_size is {world_size}, but the run has {size} processes; leave it at 1 to follow the "
            "launcher.",
        )
    if local_rank not in (-1, here.local_rank):
        raise ConfigError(
            f"training.local_rank が {local_rank} ですが、ランチャーは {here.local_rank} としています。-1 にするとランチャーに合わせます。",
            f"training.local_rank is {local_rank}, but the launcher set {here.local_rank}; leave it at -1 to "
            "follow the launcher.",
        )
    if name == "model_parallel" and size > 1:
        raise ConfigError(
            f"parallel.strategy model_parallel は 1 プロセスで動きますが、プロセスは {size} 個です。torchrun を使わずに起動するか、strategy: "
            "pipeline にしてください。",
            f"parallel.strategy model_parallel runs in one process, but there are {size}; start it without "
            "torchrun, or use strategy: pipeline.",
        )
    asked = pipeline_parallel_size * tensor_parallel_size
    if size == 1 and (name in ("pipeline", "tensor") or asked > 1):
        raise ConfigError(
            f"parallel.strategy {name}（pipeline_parallel_size {pipeline_parallel_size}、tensor_parallel_size "
            f"{tensor_parallel_size}）には {max(2, asked)} プロセス以上が必要ですが、1 つしかありません。"
            f"GPU を増やすか、GPU なしで試すなら --cpu-processes {max(2, asked)}（parallel.processes）を指定してください。",
            f"parallel.strategy {name} (pipeline_parallel_size {pipeline_parallel_size}, tensor_parallel_size "
            f"{tensor_parallel_size}) needs {max(2, asked)} processes or more, and there is one: "
            f"use more GPUs, or, to try it without, --cpu-processes {max(2, asked)} (parallel.processes).",
        )
    if deepspeed_stage is not None:
        zero.validate_processes(size)
    sizes = sizes_of(name, size, pipeline=pipeline_parallel_size, tensor=tensor_parallel_size)
    sharded = name == "fsdp" and sizes.dp > 1
    return ParallelPlan(name, sizes, sharded=sharded, schedule=pipeline_schedule, zero_stage=deepspeed_stage)


def validate_model(
    choice: ParallelPlan, config: Any, *, bits: int | None, optimizer: str, use_dora: bool, scaler: bool = False
) -> None:
    """Refuses a model's configuration that the choice cannot train, before its weights are loaded.

    Args:
        config: the transformers configuration.
        bits: of a quantized base.
        scaler: gradients are scaled (fp16).

    Raises:
        ConfigError: with the numbers and the way out.
    """
    if choice.zero_stage is not None:
        zero.validate(choice.zero_stage, bits=bits, optimizer=optimizer, scaler=scaler)
    tensor.validate(
        config, tensor=choice.sizes.tp, sharded=choice.sharded, bits=bits, optimizer=optimizer, use_dora=use_dora
    )
    if bits == 8 and choice.sharded:
        raise ConfigError(
            "strategy: fsdp は 8 ビット量子化と組み合わせられません。method: qlora の 4 ビット（qlora_4bit: true）か strategy: ddp を使ってください。",
            "strategy: fsdp cannot be combined with an 8-bit base; use 4 bit (qlora_4bit: true), or strategy: ddp.",
        )
    if choice.sizes.pp > 1:
        validate_pipeline(config, choice.sizes, choice.schedule, sharded=choice.sharded)


def warn_of_idle_ranks(choice: ParallelPlan, rows: int) -> None:
    """Warns that processes have nothing to compute if a step has fewer rows than processes.

    Args:
        rows: of an optimizer step (batch size x accumulation).
    """
    ranks = choice.sizes.dp
    if rows >= ranks:
        return
    warn(
        f"1 ステップは {rows} 行（batch_size x gradient_accumulation_steps）ですが、データを分け合うプロセスは {ranks} 個あります。{ranks - rows} "
        f"個は計算するものがありません。積を {ranks} 以上にするか、プロセスを {rows} 個以下にしてください。",
        f"a step has {rows} rows (batch_size x gradient_accumulation_steps) for {ranks} processes that share the data: "
        f"{ranks - rows} of them would have nothing to compute. Make the product {ranks} or more, or use {rows} "
        "processes or fewer.",
    )
