"""From a strategy's name and the number of processes to the strategy; refuses before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ConfigError, NotBuiltError
from ..notices import notice
from .accelerated import Accelerated
from .distributed import Distributed
from .mesh import Sizes, build_mesh, sizes_of
from .processes import launched
from .single import SingleDevice
from .strategy import Strategy

# Strategies that the documentation names and that a later version builds.
NOT_BUILT = ("model_parallel", "pipeline", "tensor")


@dataclass(frozen=True)
class Choice:
    """How a run is spread.

    Attributes:
        sizes: stages x data ranks x ranks that share a layer.
        sharded: weights are cut over the data ranks (FSDP2).
    """

    sizes: Sizes = Sizes()
    sharded: bool = False

    @property
    def processes(self) -> int:
        """Processes of the run."""
        return self.sizes.pp * self.sizes.dp * self.sizes.tp

    @property
    def replicated(self) -> bool:
        """Whether every process holds all weights, so that whatever runs in one process runs here."""
        return not self.sharded and self.sizes.pp == self.sizes.tp == 1

    def data_place(self, rank: int) -> tuple[int, int]:
        """(data rank, data ranks) of a process; the mesh is [pp, dp, tp]."""
        return rank // self.sizes.tp % self.sizes.dp, self.sizes.dp


def check_strategy(
    name: str, *, processes: int | None = None, pipeline_parallel_size: int = 1, tensor_parallel_size: int = 1,
    world_size: int = 1, local_rank: int = -1,
) -> Choice:  # fmt: skip
    """What the settings mean for a number of processes; refuses what cannot run here.

    Args:
        processes: of the run; None: those that the launcher started.

    Raises:
        NotBuiltError: a documented strategy that this version does not run yet.
        ConfigError: sizes or ranks that do not fit the launcher's.
    """
    here = launched()
    size = processes or here.size
    if world_size not in (1, size):
        raise ConfigError(
            f"training.world_size が {world_size} ですが、プロセスは {size} 個です。1 にするとランチャーに合わせます。",
            f"training.world_size is {world_size}, but the run has {size} processes; leave it at 1 to follow the launcher.",
        )
    if local_rank not in (-1, here.local_rank):
        raise ConfigError(
            f"training.local_rank が {local_rank} ですが、ランチャーは {here.local_rank} としています。-1 にするとランチャーに合わせます。",
            f"training.local_rank is {local_rank}, but the launcher says {here.local_rank}; leave it at -1 to follow the launcher.",
        )
    wanted = name
    if name in ("ddp", "auto") and pipeline_parallel_size * tensor_parallel_size > 1:
        wanted = "pipeline" if pipeline_parallel_size > 1 else "tensor"
    if wanted in NOT_BUILT:
        raise NotBuiltError(
            f"parallel.strategy {wanted} はこの版ではまだ動きません。ddp か fsdp を使うか、QLoRA でメモリーを減らしてください。",
            f"parallel.strategy {wanted} does not run in this version yet; use ddp or fsdp, or QLoRA to save memory.",
        )
    sizes = sizes_of(name, size, pipeline=pipeline_parallel_size, tensor=tensor_parallel_size)
    return Choice(sizes, sharded=name == "fsdp" and sizes.dp > 1)


def choose(
    choice: Choice, *, device: torch.device, autocast: torch.dtype | None, scaler: bool, use_accelerate: bool
) -> Strategy:
    """The strategy; the process group has to be there where there are several processes."""
    if choice.processes == 1:
        kind = Accelerated if use_accelerate else SingleDevice
        return kind(device, autocast=autocast, scaler=scaler)
    if use_accelerate:
        notice(
            "複数プロセスでは use_accelerate によらず、このツールキット自身の並列処理を使います。",
            "with several processes this toolkit's own parallel path runs, whatever use_accelerate says.",
        )
    mesh = build_mesh(choice.sizes, device.type)
    return Distributed(device, mesh, sharded=choice.sharded, autocast=autocast, scaler=scaler)
