"""The processes of a run: what the launcher started, and how they agree."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from ..errors import ConfigError
from ..messages import excerpt, notice
from .wire import decode, encode


@dataclass(frozen=True)
class Launched:
    """What torchrun, accelerate launch, Ray or SLURM's torchrun wrote into the environment.

    Attributes:
        rank, size: of this process among all.
        local_rank: on its machine; picks the GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0


def launched() -> Launched:
    """RANK, WORLD_SIZE and LOCAL_RANK; one process where they are not set, or empty. One process is the first, whatever
    RANK is left in its shell.

    Raises:
        ConfigError: one of them is no whole number, or RANK is not below a WORLD_SIZE of several.
    """
    size = _from_launcher("WORLD_SIZE", 1, 1)
    rank, local_rank = _from_launcher("RANK", 0, 0), _from_launcher("LOCAL_RANK", 0, 0)
    if size == 1:
        return Launched(0, 1, local_rank)
    if rank >= size:
        raise ConfigError(
            f"環境変数 RANK が {rank} ですが、WORLD_SIZE は {size} です。torchrun などのランチャーで起動するか、RANK を消してください（unset RANK）。",
            f"the environment variable RANK is {rank}, but WORLD_SIZE is {size}; start with a launcher such as torchrun, or "
            "unset RANK.",
        )
    return Launched(rank, size, local_rank)


def _from_launcher(name: str, otherwise: int, least: int) -> int:
    """A number that a launcher wrote into the environment."""
    text = os.environ.get(name, "").strip()
    if not text:
        return otherwise
    if not (text.isascii() and text.isdigit()) or int(text) < least:
        raise ConfigError(
            f"環境変数 {name} が {excerpt(text)} です。{least} 以上の整数にするか、消してください（unset {name}）。",
            f"the environment variable {name} is {excerpt(text)}; it must be a whole number of at least {least}, or unset it.",
        )
    return int(text)


def backend_for(device: torch.device) -> str:
    """gloo on CPUs; on GPUs NCCL for device tensors and gloo for host tensors (checkpoints, flags)."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


# Set by our own launcher: the file over which the processes meet.
STORE = "AIFT_STORE"
_GROUPS = itertools.count()  # a second group of a process must not read the addresses of the first


@functools.cache
def _rendezvous(timeout: timedelta) -> tuple[Store, int, int]:
    """The launcher's store, this process's rank and their number; one connection serves all groups of a process."""
    me, file = launched(), os.environ.get(STORE)
    if file is not None:
        return dist.FileStore(file, me.size), me.rank, me.size  # type: ignore[attr-defined]
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing:
        names = ", ".join(missing)
        raise ConfigError(
            f"環境変数 WORLD_SIZE が {me.size} ですが、{names} がありません。torchrun などのランチャーで起動するか、1 プロセスなら WORLD_SIZE を消してください（unset WORLD_SIZE RANK）。",
            f"the environment variable WORLD_SIZE is {me.size} without {names}; start with a launcher such as torchrun, "
            "or, for one process, unset WORLD_SIZE and RANK.",
        )
    if me.is_main:
        notice(
            "外部のランチャーで起動されたため、torch のストアと gloo・NCCL のポートがネットワークに開きます"
            f"（{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}、認証なし）。信頼できるネットワークかファイアウォールの内側で"
            "使ってください（docs/strategies.ja.md）。",
            "started by a launcher of yours: torch opens a store and the ports of gloo or NCCL to the network "
            f"({os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}, no authentication). Keep them behind a "
            "firewall or in a private network (docs/strategies.md).",
        )
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    return store, rank, size


@contextlib.contextmanager
def process_group(device: torch.device, *, timeout_seconds: float = 1800.0) -> Iterator[None]:
    """The default group of all launched processes; one that is there already is used and left alone.

    After an error it is not taken down: others may be waiting inside an exchange, so that to take it down may wait for
    them, or tell them that a process is gone before that process has told its reason. It ends with the process.
    """
    if dist.is_initialized() or launched().size == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_seconds)
    store, rank, size = _rendezvous(timeout)
    own = PrefixStore(f"group-{next(_GROUPS)}", store)
    dist.init_process_group(backend_for(device), store=own, rank=rank, world_size=size, timeout=timeout)
    yield
    dist.destroy_process_group()


def lost_a_peer(error: BaseException) -> bool:
    """Whether an error only says that another process is gone or late: NCCL's has a type of its own, gloo's is known
    by its text.
    """
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


@dataclass(frozen=True)
class Peers:
    """Processes that do something together.

    Attributes:
        rank, size: of this process among them.
        group: theirs; None is the default group.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the first of them."""
        return self.rank == 0


def all_peers() -> Peers:
    """All processes, in a gloo group of their own: what one thread sends there does not mix with another's messages."""
    if not dist.is_initialized():
        return Peers()
    return Peers(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))


def host_group() -> dist.ProcessGroup | None:
    """The group of all processes for tensors of the host: the default one where gloo serves it (or a plan pretends that
    processes are there), else one beside it.
    """
    config = dist.get_backend_config()
    return None if "cpu:gloo" in config or "cpu:fake" in config else dist.new_group(backend="gloo")


def gather(value: Any, peers: Peers) -> list[Any]:
    """`value` of every one of them, by rank: plain values and arrays (parallel/wire.py), never a pickle."""
    if peers.size == 1:
        return [value]
    mine = torch.frombuffer(bytearray(encode(value)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(peers.size)]
    dist.all_gather(sizes, torch.tensor([len(mine)]), group=peers.group)
    longest = max(int(size) for size in sizes)
    parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(peers.size)]
    dist.all_gather(parts, torch.nn.functional.pad(mine, (0, longest - len(mine))), group=peers.group)
    return [decode(part[: int(size)].numpy().tobytes()) for part, size in zip(parts, sizes, strict=True)]


def wait_for(peers: Peers) -> None:
    """Returns once every one of them has come here."""
    gather(None, peers)
