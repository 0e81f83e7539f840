"""From a strategy's name to the strategy; refuses before anything is loaded."""

from __future__ import annotations

import os

import torch

from ..errors import ConfigError, NotBuiltError
from .accelerated import Accelerated
from .single import SingleDevice
from .strategy import Strategy

# Strategies that the documentation names and that a later version builds.
NOT_BUILT = ("model_parallel", "pipeline", "fsdp", "tensor")


def launched_processes() -> int:
    """Processes that the launcher (torchrun, accelerate, SLURM, Ray) started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def check_strategy(
    name: str, *, pipeline_parallel_size: int = 1, tensor_parallel_size: int = 1, world_size: int = 1
) -> None:
    """Refuses what cannot run here, before a model is loaded.

    Raises:
        NotBuiltError: a documented strategy that this version does not run yet.
        ConfigError: sizes that do not fit the number of processes.
    """
    processes = launched_processes()
    if world_size not in (1, processes):
        raise ConfigError(
            f"training.world_size が {world_size} ですが、起動されたプロセスは {processes} 個です。1 にするとランチャーに合わせます。",
            f"training.world_size is {world_size}, but the launcher started {processes}; leave it at 1 to follow the launcher.",
        )
    wanted = name
    if name in ("ddp", "auto") and pipeline_parallel_size * tensor_parallel_size > 1:
        wanted = "pipeline" if pipeline_parallel_size > 1 else "tensor"
    if wanted in NOT_BUILT or processes > 1:
        label = wanted if wanted in NOT_BUILT else f"{wanted} ({processes} processes)"
        raise NotBuiltError(
            f"parallel.strategy {label} はこの版ではまだ動きません。1 プロセスで strategy: ddp を使うか、QLoRA でメモリーを減らしてください。",
            f"parallel.strategy {label} does not run in this version yet; use strategy: ddp in one process, or QLoRA to save memory.",
        )


def choose(*, device: torch.device, autocast: torch.dtype | None, scaler: bool, use_accelerate: bool) -> Strategy:
    """The strategy of one process (check_strategy() has refused everything else)."""
    kind = Accelerated if use_accelerate else SingleDevice
    return kind(device, autocast=autocast, scaler=scaler)
