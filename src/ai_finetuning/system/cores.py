"""How many threads a step should compute with, one a physical core that this process may use, and how they wait."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ..messages import notice

_TOPOLOGY = Path("/sys/devices/system/cpu")
# A container's share of the processors (cgroup v2, as the container sees its own group): "quota period" or "max
# period".
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def physical_cores(*, topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Cores that this process may use: its affinity with hyper-threads counted once, at most a container's quota.

    Args:
        topology: where Linux says which logical processors share a core.
        quota: the file with the quota; without one there is none.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = os.sched_getaffinity(0)
        cores = len({_siblings(topology, processor) for processor in allowed})
    else:
        import psutil  # only here: the command's start takes this file

        cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return max(1, min(cores, _share(quota) or cores))


def _siblings(topology: Path, processor: int) -> str:
    """The processors that share a core with this one, as Linux writes them; the processor itself where it does not."""
    try:
        return (topology / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return str(processor)


def _share(quota: Path) -> int | None:
    """Whole processors that a quota is worth, rounded up; None without one."""
    try:
        allowed, period = quota.read_text(encoding="ascii").split()
        return math.ceil(int(allowed) / int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return None


def use_physical_cores() -> None:
    """Takes torch's threads down to one a core.

    torch counts hyper-threads where it runs without MKL, and processors beyond a container's quota everywhere; both
    make products slower. What the user chose (OMP_NUM_THREADS, MKL_NUM_THREADS, torch.set_num_threads below the number
    of cores) stands.
    """
    import torch  # only here: the number of cores is asked for without it

    threads, cores = torch.get_num_threads(), physical_cores()
    if threads <= cores or os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS"):
        return
    torch.set_num_threads(cores)
    notice(
        f"スレッド数を {threads} から物理コア数の {cores} にします（変えるには OMP_NUM_THREADS）。",
        f"using {cores} threads, one per physical core, instead of {threads} (OMP_NUM_THREADS changes this).",
    )


def threads_are_chosen() -> bool:
    """Whether the user, or whoever started this process, has said with how many threads it computes (as above)."""
    import torch

    told = os.environ.get("OMP_NUM_THREADS") or os.environ.get("MKL_NUM_THREADS")
    return bool(told) or torch.get_num_threads() < physical_cores()


@contextlib.contextmanager
def threads_kept() -> Iterator[None]:
    """Behind the block torch computes with as many threads as before."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


# Any of these says how OpenMP's threads wait: OpenMP's own variable, GNU's and LLVM's.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
# Processes that want a processor, for each that there is, from which on a line is said.
_LOADED = 2.0


def wait_passively() -> None:
    """On a busy machine, has OpenMP's threads sleep at the end of a parallel part, not keep their cores busy until the last one
    is there.

    Beside other processes a thread that spins takes the time of the one it waits for; on a quiet machine waking it costs
    more (docs/performance.md). Read by OpenMP when torch is imported, so this comes before; children inherit it. What the
    user chose stands.
    """
    if _is_busy() and not any(name in os.environ for name in _WAITING):
        os.environ["OMP_WAIT_POLICY"] = "passive"


def _load() -> float:
    """How many processes computed, or waited to, in the last minute; 0 where the system does not tell."""
    if sys.platform == "win32":
        return 0.0
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def _is_busy() -> bool:
    return _load() >= _LOADED * (os.cpu_count() or 1)


def tell_load() -> None:
    """One line where other processes keep this machine busy, so that nobody takes the slow steps for the model's."""
    if _is_busy():
        load, processors = _load(), os.cpu_count() or 1
        notice(
            f"この PC ではほかの処理が動いています（負荷 {load:.1f}、プロセッサー {processors} 個）。学習はその分遅くなります。結果は変わりません。",
            f"other processes keep this machine busy (load {load:.1f}, {processors} processors): training takes longer for "
            "it, and gives the same.",
        )
