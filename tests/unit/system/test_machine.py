"""Cores and folders of the machine: what a run takes without being told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ai_finetuning.system.cores import physical_cores, tell_load, use_physical_cores, wait_passively
from ai_finetuning.system.folders import cache_folder

linux = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is Linux's")


def topology(folder: Path, *cores: tuple[int, ...]) -> Path:
    """What Linux writes of a machine whose cores have these logical processors."""
    for core in cores:
        for processor in core:
            place = folder / f"cpu{processor}" / "topology"
            place.mkdir(parents=True)
            (place / "thread_siblings_list").write_text(",".join(map(str, core)) + "\n", encoding="ascii")
    return folder


@linux
def test_hyper_threads_of_one_core_are_one(tmp_path: Path):
    """Every processor that this process may use has a sibling: half as many cores, and one where all share it."""
    mine = sorted(os.sched_getaffinity(0))
    none = tmp_path / "no-quota"
    pairs = topology(tmp_path / "pairs", *((processor, processor + 1000) for processor in mine))
    assert physical_cores(topology=pairs, quota=none) == len(mine)
    shared = topology(tmp_path / "shared", tuple(mine))
    assert physical_cores(topology=shared, quota=none) == 1
    assert physical_cores(topology=tmp_path / "unknown", quota=none) == len(mine)


@linux
@pytest.mark.parametrize(("text", "most"), [("50000 100000", 1), ("max 100000", None), ("150000 100000", 2)])
def test_a_container_takes_no_more_than_its_quota(tmp_path: Path, text: str, most: int | None):
    quota = tmp_path / "cpu.max"
    quota.write_text(text + "\n", encoding="ascii")
    mine = len(os.sched_getaffinity(0))
    assert physical_cores(topology=tmp_path / "unknown", quota=quota) == min(mine, most or mine)


def test_a_run_computes_with_one_thread_a_core(monkeypatch: pytest.MonkeyPatch):
    before, cores = torch.get_num_threads(), physical_cores()
    try:
        torch.set_num_threads(cores + 3)
        monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 3))
        use_physical_cores()
        assert torch.get_num_threads() == cores + 3  # the user's word stands
        monkeypatch.delenv("OMP_NUM_THREADS")
        monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
        use_physical_cores()
        assert torch.get_num_threads() == cores
    finally:
        torch.set_num_threads(before)


def test_a_fresh_process_starts_with_no_more_threads_than_cores():
    """What torch takes by itself on this machine, without any setting, and after the toolkit has looked."""
    clean = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    code = (
        "import torch; from ai_finetuning.system.cores import *; use_physical_cores(); "
        "print(torch.get_num_threads(), physical_cores())"
    )
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True, check=True)
    threads, cores = map(int, done.stdout.split()[-2:])
    assert 1 <= threads <= cores


def test_tokens_and_kernels_lie_in_one_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path))
    assert cache_folder("tokens") == tmp_path / "tokens"
    monkeypatch.delenv("AIFT_CACHE")
    assert cache_folder("tokens").parent == cache_folder("kernels").parent
    assert cache_folder("kernels").parent.name == "ai_finetuning"


@linux
@pytest.mark.parametrize(
    ("load", "given", "policy"), [(5.0, None, "passive"), (5.0, "active", "active"), (0.4, None, None)]
)
def test_threads_that_wait_sleep_on_a_busy_machine_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, load: float, given: str | None, policy: str | None
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    monkeypatch.setattr(os, "getloadavg", lambda: (load * (os.cpu_count() or 1), 0.0, 0.0))
    wait_passively()
    assert os.environ.get("OMP_WAIT_POLICY") == policy


@linux
def test_a_system_that_does_not_tell_its_load_counts_as_quiet(monkeypatch: pytest.MonkeyPatch, logged):
    def refuse() -> None:
        raise OSError("Load averages are unobtainable")

    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(os, "getloadavg", refuse)
    wait_passively()
    tell_load()
    assert "OMP_WAIT_POLICY" not in os.environ
    assert "other processes" not in logged()


@linux
def test_a_busy_machine_is_named_and_a_quiet_one_is_not(monkeypatch: pytest.MonkeyPatch, logged):
    processors = os.cpu_count() or 1
    monkeypatch.setattr(os, "getloadavg", lambda: (0.4 * processors, 0.0, 0.0))
    tell_load()
    assert not logged()
    monkeypatch.setattr(os, "getloadavg", lambda: (5.0 * processors, 0.0, 0.0))
    tell_load()
    assert "other processes keep this machine busy" in logged()
