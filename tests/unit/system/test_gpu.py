"""The five documented functions, on the machine at hand and with a CUDA and an MPS that are pretended."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from tests.support.models import build_model

from ai_finetuning import (
    clear_gpu_memory,
    get_available_device,
    get_gpu_memory_info,
    set_memory_fraction,
)
from ai_finetuning.errors import ConfigError
from ai_finetuning.models.to_device import optimize_model_for_gpu
from ai_finetuning.system import nvml
from ai_finetuning.system.children import isolated_environment
from ai_finetuning.system.environment import environment
from ai_finetuning.system.gpu import (
    computing_on,
    cpu_has_bf16,
    free_memory_bytes,
    let_segments_grow,
    memory_growth,
    peak_bytes,
)

no_gpu = pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="asks for no GPU")


@no_gpu
def test_on_a_cpu(logged):
    assert get_available_device() == torch.device("cpu")
    assert get_gpu_memory_info() == {"available": False, "device_count": 0, "devices": []}
    clear_gpu_memory()
    set_memory_fraction(0.5)
    assert "no effect" in logged()


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, True, "0.5", float("nan")])
def test_fractions_out_of_range_are_refused(fraction: float):
    with pytest.raises(ConfigError, match="fraction"):
        set_memory_fraction(fraction)


@no_gpu
def test_models_become_what_the_cpu_does_well():
    model, device = optimize_model_for_gpu(build_model())
    assert device.type == "cpu"
    assert next(model.parameters()).dtype is (torch.bfloat16 if cpu_has_bf16() else torch.float32)
    model, _ = optimize_model_for_gpu(
        build_model(), torch.device("cpu"), enable_mixed_precision=False, gradient_checkpointing=True
    )
    assert next(model.parameters()).dtype is torch.float32
    assert model.is_gradient_checkpointing
    plain, _ = optimize_model_for_gpu(torch.nn.Linear(2, 2), gradient_checkpointing=True)  # a module without it
    assert isinstance(plain, torch.nn.Linear)
    for device in ("cuda", torch.device("cuda", 1)):
        with pytest.raises(ConfigError, match="0 usable cuda devices"):
            optimize_model_for_gpu(plain, device)


def test_cuda_information_has_the_documented_keys(monkeypatch: pytest.MonkeyPatch):
    properties = SimpleNamespace(name="NVIDIA RTX A5000", multi_processor_count=64)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "get_device_properties": lambda index: properties,
        "mem_get_info": lambda index: (20_000_000_000, 24_000_000_000),
        "memory_allocated": lambda index: 1_000_000_000,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    info = get_gpu_memory_info()
    assert info["available"] is True
    assert info["device_count"] == 2
    assert info["devices"][1] == {
        "index": 1,
        "name": "NVIDIA RTX A5000",
        "total_memory_gb": 24.0,
        "allocated_memory_gb": 1.0,
        "free_memory_gb": 20.0,
        "multi_processor_count": 64,
    }
    assert get_available_device().type == "cuda"


def test_mps_is_taken_where_there_is_no_cuda(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    called = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: called.append("empty"))
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", called.append)
    assert get_available_device().type == "mps"
    clear_gpu_memory()
    set_memory_fraction(0.4)
    assert called == ["empty", 0.4]
    assert get_gpu_memory_info()["available"] is False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process measure its peak again")
def test_memory_growth_is_that_of_the_work_and_not_of_what_was_before():
    def hold(megabytes: int):
        return lambda: torch.ones(megabytes * 2**18)

    device = torch.device("cpu")
    hold(200)()
    for megabytes in (64, 16, 64):
        obtained = memory_growth(device, hold(megabytes))
        if obtained is None:
            pytest.skip("/proc/self/clear_refs cannot be written here")
        assert obtained == pytest.approx(megabytes * 2**20, rel=0.2)


@pytest.mark.parametrize("driver", [True, False], ids=["nvml", "no-nvml"])
def test_a_rank_asks_cuda_about_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch, driver: bool):
    """Whatever CUDA is asked about keeps a context of this process, hundreds of MB on a GPU that another rank needs."""
    asked: list[int] = []

    def number(device: object) -> int:
        index = device.index if isinstance(device, torch.device) else device
        return 3 if index is None else index  # type: ignore[return-value]

    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 3,
        "device_count": lambda: 8,
        "get_device_properties": lambda index: SimpleNamespace(name="A100", multi_processor_count=108),
        "mem_get_info": lambda device: (asked.append(number(device)), (50 * 10**9, 80 * 10**9))[1],
        "memory_allocated": lambda index: 0,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    cards = [nvml.Gpu(index, "A100", 80 * 10**9, 60 * 10**9) for index in range(8)] if driver else []
    monkeypatch.setattr(nvml, "gpus", lambda: cards)
    obtained = environment()["gpu"]
    assert obtained["available"] is True
    assert obtained["device_count"] == 8
    assert len(obtained["devices"]) == (8 if driver else 1)
    assert free_memory_bytes(torch.device("cuda", 3)) == 50 * 10**9
    assert free_memory_bytes(torch.device("cuda")) == 50 * 10**9
    if driver:
        assert free_memory_bytes(torch.device("cuda", 5)) == 60 * 10**9
    assert set(asked) == {3}


def test_a_run_counts_its_own_peak_and_reports_what_was_reserved(monkeypatch: pytest.MonkeyPatch):
    """What was allocated is less than what runs out; fp32 that was asked for is not made TF32."""
    reset: list[int] = []
    for name, value in {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "current_device": lambda: 1,
        "device_count": lambda: 2,
        "reset_peak_memory_stats": reset.append,
        "max_memory_allocated": lambda index: 5,
        "max_memory_reserved": lambda index: 7 + index,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    before = torch.get_float32_matmul_precision()
    assert before == "highest"
    for mixed in (False, True):
        with computing_on(torch.device("cuda", 1), mixed_precision=mixed):
            assert torch.get_float32_matmul_precision() == ("high" if mixed else before)
        assert torch.get_float32_matmul_precision() == before
    assert reset == [0, 1, 0, 1]
    assert peak_bytes(torch.device("cuda", 1)) == 8
    with computing_on(torch.device("cpu"), mixed_precision=True):
        assert torch.get_float32_matmul_precision() == before
    assert peak_bytes(torch.device("cpu")) > 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no growing segments")
def test_segments_grow_in_the_processes_of_a_run_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch):
    """Rows without padding have another length in every step; fixed segments would fragment."""
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:128")
    let_segments_grow()
    assert "PYTORCH_ALLOC_CONF" not in isolated_environment()
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    let_segments_grow()
    assert isolated_environment()["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    del os.environ["PYTORCH_ALLOC_CONF"]
