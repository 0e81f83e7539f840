"""With what the group of a run's processes is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ai_finetuning.parallel import processes
from ai_finetuning.parallel.processes import STORE, process_group


@pytest.mark.parametrize(("device", "backend"), [("cuda:1", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")], ids=["gpu", "cpu"])
def test_a_process_takes_its_gpu_first_and_binds_none(
    device: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A bound device (device_id) would make torch split gloo by the options of NCCL (docs/decisions/0111)."""
    calls: list[tuple[str, Any]] = []

    def making(backend: str, **options: Any) -> None:
        calls.append(("group", {"backend": backend} | options))

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", STORE: str(tmp_path / "store")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", making)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append(("end", None)))
    monkeypatch.setattr(torch.cuda, "set_device", lambda taken: calls.append(("device", str(taken))))
    processes._rendezvous.cache_clear()
    try:
        with process_group(torch.device(device), timeout_seconds=60):
            pass
    finally:
        processes._rendezvous.cache_clear()
    expected = [("device", "cuda:1")] if device != "cpu" else []
    assert [name for name, _ in calls] == [*(name for name, _ in expected), "group", "end"]
    assert calls[: len(expected)] == expected
    made = calls[len(expected)][1]
    assert made["backend"] == backend
    assert (made["rank"], made["world_size"], made["timeout"].total_seconds()) == (1, 2, 60)
    assert "device_id" not in made
