"""Copies to the host through two buffers: every byte, whenever a device gets to them, and the same checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ai_finetuning.engine.checkpoint.background import CheckpointWriter, HostCopy, Snapshot
from ai_finetuning.engine.checkpoint.staging import AtOnce, Queue, Staging
from ai_finetuning.engine.checkpoint.store import CheckpointStore, load

CPU = torch.device("cpu")


def tensors() -> dict[str, Tensor]:
    """Every kind that a checkpoint holds: of several buffers, of a few bytes, empty, and not contiguous."""
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(70, 33, generator=generator),
        "half": torch.randn(41, 7, generator=generator).bfloat16(),
        "step": torch.tensor(3.0),
        "eight bits": torch.randint(0, 255, (1001,), generator=generator, dtype=torch.uint8),
        "none": torch.empty(0, 4),
        "turned": torch.randn(30, 50, generator=generator).t(),
        "flag": torch.tensor([True, False, True]),
        "number": torch.arange(9),
    }


def empty_like(wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.empty(item.shape, dtype=item.dtype).fill_(1) for name, item in wanted.items()}


class Late:
    """A device that copies only when somebody waits for it, as late as it may."""

    def __init__(self) -> None:
        self.queued: list[tuple[Tensor, Tensor]] = []
        self.waits = 0

    def copy(self, target: Tensor, source: Tensor) -> None:
        self.queued.append((target, source))

    def mark(self) -> Callable[[], None]:
        due = len(self.queued)

        def wait() -> None:
            self.waits += 1
            for index in range(due):
                target, source = self.queued[index]
                if target.numel():
                    target.copy_(source)
                    self.queued[index] = (torch.empty(0), torch.empty(0))

        return wait


@pytest.mark.parametrize("chunk", [1, 100, 4096, 2**20])
@pytest.mark.parametrize("queue", [AtOnce, Late])
def test_every_byte_arrives(queue: type, chunk: int):
    """A buffer is read only when its copies are done, and filled again only when it was read."""
    wanted = tensors() if chunk > 1 else {name: item for name, item in tensors().items() if item.numel() < 50}
    staging = Staging(CPU, chunk_bytes=chunk)
    for _ in range(2):
        obtained, device = empty_like(wanted), queue()
        staging.copy([(wanted[name], obtained[name]) for name in wanted], device)
        for name, item in wanted.items():
            assert torch.equal(obtained[name], item), name
        if isinstance(device, Late) and chunk == 2**20:
            assert device.waits == 1  # one wait, however many tensors


class Failing(AtOnce):
    def copy(self, target: Tensor, source: Tensor) -> None:
        raise RuntimeError("CUDA error")


def test_after_a_failure_the_next_copy_is_whole():
    staging, wanted = Staging(CPU, chunk_bytes=100), tensors()
    failing: Queue = Failing()
    with pytest.raises(RuntimeError):
        staging.copy([(wanted["weight"], torch.empty(70, 33))], failing)
    obtained = empty_like(wanted)
    staging.copy([(wanted[name], obtained[name]) for name in wanted])
    assert all(torch.equal(obtained[name], item) for name, item in wanted.items())


def test_staged_checkpoints_have_the_bytes_of_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of the moment when they were asked for: what training changes meanwhile is not in them."""
    weights = {name: item for name, item in tensors().items() if name != "number"}
    expected = {name: item.clone() for name, item in weights.items()}
    files = []
    for way, staged in (("plain", ()), ("staged", ("cpu",))):
        monkeypatch.setattr(HostCopy, "_staged_types", staged)
        with CheckpointWriter(CheckpointStore(tmp_path / way), background=True, on_saved=lambda _: None) as writer:
            for step in (1, 2):
                for name, item in weights.items():
                    item.copy_(expected[name])
                writer.save(Snapshot(step, {"model": weights, "optimizer": {}}, {"train": {}}))
                for item in weights.values():
                    item.zero_()
        assert bool(writer._copy._staging) == (way == "staged")
        for step in (1, 2):
            folder = tmp_path / way / f"checkpoint-{step}"
            loaded = load(folder).tensors["model"]
            assert all(torch.equal(loaded[name], item) for name, item in expected.items())
            (file,) = folder.glob("model*.safetensors")
            files.append(file.read_bytes())
    assert len(set(files)) == 1
