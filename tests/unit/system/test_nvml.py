"""GPUs by the driver's library: none here, and a machine of three by an object of pynvml's shape."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ai_finetuning.system import environment, nvml
from ai_finetuning.system.nvml import Gpu, gpus

GIB = 2**30


class Driver:
    """pynvml's functions over a table of cards."""

    class NVMLError(Exception):
        pass

    def __init__(self, *cards: tuple[str, str, int, int], works: bool = True, lost: bool = False) -> None:
        self.cards, self.works, self.lost, self.opened = cards, works, lost, 0

    def nvmlInit(self) -> None:
        if not self.works:
            raise self.NVMLError("Driver Not Loaded")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, str, int, int]:
        return self.cards[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str, str, int, int]:
        if uuid != "MIG-7":
            raise self.NVMLError("Not Found")
        return (uuid, "A100 1g", 10 * GIB, 9 * GIB)

    def nvmlDeviceGetName(self, handle: tuple[str, str, int, int]) -> bytes:
        return handle[1].encode()  # older drivers' bindings give bytes

    def nvmlDeviceGetUUID(self, handle: tuple[str, str, int, int]) -> str:
        return handle[0]

    def nvmlDeviceGetMemoryInfo(self, handle: tuple[str, str, int, int]) -> SimpleNamespace:
        if self.lost:
            raise self.NVMLError("GPU is lost")
        return SimpleNamespace(total=handle[2], free=handle[3])


def three() -> Driver:
    return Driver(
        ("GPU-aa1", "A100", 80 * GIB, 70 * GIB),
        ("GPU-ab2", "A100", 80 * GIB, 60 * GIB),
        ("GPU-cd3", "A100", 80 * GIB, 50 * GIB),
    )


@pytest.mark.parametrize(
    ("visible", "free"),
    [
        ("0,1,2", [70, 60, 50]),
        ("2,0", [50, 70]),
        ("", []),
        ("-1", []),
        ("1,7,0", [60]),  # CUDA stops at the first that names no GPU
        ("0,0", []),
        ("GPU-cd, GPU-ab2", [50, 60]),
        ("GPU-a", []),  # two begin with that
        ("MIG-7", [9]),
        ("MIG-8", []),
        ("all", []),
    ],
)
def test_cuda_visible_devices_chooses_and_orders(visible: str, free: list[int]):
    driver = three()
    obtained = gpus(driver, visible)
    assert [gpu.free_bytes // GIB for gpu in obtained] == free
    assert [gpu.index for gpu in obtained] == list(range(len(free)))
    assert driver.opened == 0


def test_the_environment_variable_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert len(gpus(three())) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert gpus(three()) == [Gpu(0, "A100", 80 * GIB, 60 * GIB)]


def test_without_a_driver_there_are_none():
    assert gpus(Driver(works=False)) == []
    assert gpus(Driver(("GPU-1", "A100", 1, 1), lost=True), "0") == []


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_this_machine_is_asked_without_torch():
    code = "import sys; from ai_finetuning.system.nvml import gpus; print(gpus(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False"]


def test_the_environment_shows_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch):
    """A driver and a build of torch for CPUs: the cards are listed, and not available."""
    monkeypatch.setattr(nvml, "gpus", lambda: gpus(three(), "1"))
    obtained = environment.environment()
    assert obtained["gpu"]["device_count"] == 1
    assert obtained["gpu"]["devices"] == [
        {"index": 0, "name": "A100", "total_memory_gb": 80 * GIB / 1e9, "free_memory_gb": 60 * GIB / 1e9}
    ]
    assert obtained["gpu"]["available"] is (obtained["device"] == "cuda")


def test_free_memory_is_told_only_where_the_number_surely_means_the_card(monkeypatch: pytest.MonkeyPatch):
    """Cards of one model are numbered alike by CUDA and NVML; of several models only in the order of the bus."""
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    same = [nvml.Gpu(0, "A", 24, 20), nvml.Gpu(1, "A", 24, 7)]
    mixed = [nvml.Gpu(0, "A", 24, 20), nvml.Gpu(1, "B", 80, 70)]
    assert nvml.free_bytes(1, same) == 7
    assert nvml.free_bytes(2, same) is None
    assert nvml.free_bytes(0, []) is None
    assert nvml.free_bytes(1, mixed) is None
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    assert nvml.free_bytes(1, mixed) == 70
