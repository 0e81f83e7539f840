"""`model_parallel`: one process, the layers of a model spread over several devices by their balanced cost.

One device computes at a time, so this buys memory, not speed: at most the speed of one device.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...config.parallel import MEMORY_SIZE
from ...errors import ConfigError
from ...models.parts import unwrapped
from ...models.placement import DeviceMap, spread, validate_offloading
from ..batch import LossFunction
from ..limits import BASE_BYTES
from .single import SingleDevice

_UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
_GIB = 2**30


def memory_bytes(size: str) -> int:
    """Bytes of `22GB` (22 x 10^9) or `22GiB` (22 x 2^30); MB and MiB too.

    Raises:
        ConfigError: it is not written so.
    """
    obtained = re.match(MEMORY_SIZE, size)
    if obtained is None:
        raise ConfigError(
            f"メモリーの大きさが {size!r} です。22GB（10^9）や 22GiB（2^30）のように書いてください。",
            f"the memory size is {size!r}; write it like 22GB (10^9) or 22GiB (2^30).",
        )
    return int(float(size[: obtained.start(2)]) * _UNITS[obtained[2]])


def capacities(asked: Mapping[int, str] | None, there: Mapping[int, int]) -> dict[int, int]:
    """Bytes that a run may use on each GPU, by index.

    Args:
        asked: max_memory_per_gpu; None takes every GPU with all its free memory.
        there: free bytes of the visible GPUs.

    Raises:
        ConfigError: fewer than two GPUs, or one that is not there.
    """
    expected = {index: memory_bytes(size) for index, size in asked.items()} if asked else dict(there)
    missing = sorted(set(expected) - set(there))
    if missing or len(expected) < 2:
        have = ", ".join(map(str, sorted(there))) or "-"
        problem = f"GPU {', '.join(map(str, missing))}" if missing else f"{len(expected)} GPU"
        raise ConfigError(
            f"parallel.strategy model_parallel には見える GPU が 2 枚以上必要です（指定: {problem}、見える GPU: {have}）。"
            "1 枚なら strategy: ddp のまま使い、足りないときは method: qlora にしてください。",
            f"parallel.strategy model_parallel needs two or more visible GPUs (asked: {problem}; visible: {have}). "
            "With one, leave strategy: ddp, and use method: qlora if memory is insufficient.",
        )
    return {index: min(expected[index], there[index]) for index in sorted(expected)}


@dataclass(frozen=True)
class Block:
    """Modules that stay on one device, and the bytes of a training step there.

    Attributes:
        modules: names, in the order of the forward pass.
        weights: of weights.
        states: of gradients and optimizer.
        activations: kept from the forward to the backward pass.
        transient: needed only while the block computes; of a device's blocks the largest counts, once.
    """

    modules: tuple[str, ...]
    weights: int
    states: int
    activations: int
    transient: int = 0


@dataclass(frozen=True)
class Load:
    """What one device holds at the peak of a step, in bytes, and what it has."""

    device: int
    capacity: int
    weights: int
    states: int
    activations: int

    @property
    def total(self) -> int:
        """All of it; a device without layers is not used."""
        held = self.weights + self.states + self.activations
        return BASE_BYTES + held if held else 0

    def text(self, weights: str, states: str, activations: str, base: str) -> str:
        """One GPU's sum in GiB under the given words."""
        parts = ((weights, self.weights), (states, self.states), (activations, self.activations), (base, BASE_BYTES))
        inside = " + ".join(f"{name} {size / _GIB:.1f}" for name, size in parts)
        return f"GPU {self.device}: {self.total / _GIB:.1f} / {self.capacity / _GIB:.1f} GiB = {inside}"


@dataclass(frozen=True)
class Split:
    """A balanced map.

    Attributes:
        devices: GPU index by module name, in the order of the forward pass.
        loads: one a GPU.
    """

    devices: dict[str, int]
    loads: tuple[Load, ...]

    @property
    def fits(self) -> bool:
        """Whether every GPU has room."""
        return all(load.total <= load.capacity for load in self.loads)

    @property
    def fullest(self) -> Load:
        """The GPU that is fullest by its own size."""
        return max(self.loads, key=lambda load: load.total / load.capacity)

    def text_ja(self) -> str:
        """The arithmetic, a GPU after the other."""
        return "、".join(
            load.text("重み", "勾配とオプティマイザー", "アクティベーション", "その他") for load in self.loads
        )

    def text_en(self) -> str:
        """The arithmetic, a GPU after the other."""
        return "; ".join(load.text("weights", "gradients and optimizer", "activations", "other") for load in self.loads)

    def validate_fit(self) -> None:
        """Refuses a run that cannot fit.

        Raises:
            ConfigError: with the arithmetic and the way out.
        """
        if self.fits:
            return
        raise ConfigError(
            f"parallel.strategy model_parallel: 最も均等に分けてもメモリーが足りません。{self.text_ja()}。"
            "method: lora か qlora にする、data.max_length か batch_size を下げる、GPU を増やす、または strategy: fsdp "
            "で勾配とオプティマイザーも分けてください。",
            "parallel.strategy model_parallel: the model does not fit in memory, even when split evenly. "
            f"{self.text_en()}. "
            "Use method: lora or qlora, lower data.max_length or batch_size, use more GPUs, or strategy: fsdp "
            "with more of them.",
        )

    def device_map(self, device_type: str = "cuda") -> dict[str, torch.device]:
        """The map as transformers and ModelParallel take it."""
        return {name: torch.device(device_type, index) for name, index in self.devices.items()}


def balance(blocks: Sequence[Block], capacity: Mapping[int, int]) -> Split:
    """The split into consecutive groups, one a device in order, whose fullest device is the least full.

    A shortest-path walk over (devices used, blocks placed); what is minimised is the largest load / capacity.

    Args:
        blocks: in the order of the forward pass; a block may name modules that run at other times (a tied head).
        capacity: bytes by device index.
    """
    devices = list(capacity)
    best: list[tuple[float, list[int]]] = [(float("inf"), [])] * (len(blocks) + 1)
    best[0] = (0.0, [])
    for device in devices:
        best = [
            min(
                (
                    max(best[start][0], _load(blocks[start:end], device, capacity[device]).total / capacity[device]),
                    [*best[start][1], end],
                )
                for start in range(end + 1)
            )
            for end in range(len(blocks) + 1)
        ]
    ends = best[len(blocks)][1]
    placed: dict[str, int] = {}
    loads = []
    for device, start, end in zip(devices, [0, *ends], ends, strict=False):
        placed |= {name: device for block in blocks[start:end] for name in block.modules}
        loads.append(_load(blocks[start:end], device, capacity[device]))
    return Split(placed, tuple(loads))


def _load(blocks: Sequence[Block], device: int, capacity: int) -> Load:
    return Load(
        device,
        capacity,
        sum(block.weights for block in blocks),
        sum(block.states for block in blocks),
        sum(block.activations for block in blocks) + max((block.transient for block in blocks), default=0),
    )


class ModelParallel(SingleDevice):
    """One process over several devices; batches lie where the head is, hooks carry the rest (models/placement.py).

    Gradient norm, clipping, AdamW (fused too) and the gradient scaler group tensors by device themselves.

    Args:
        device_map: device by module name of the transformers model; Split.device_map() makes it.

    Raises:
        ModelError: the map keeps weights outside the GPUs.
    """

    def __init__(self, device_map: DeviceMap, *, autocast: torch.dtype | None = None, scaler: bool = False) -> None:
        validate_offloading(device_map)
        self.device_map = dict(device_map)
        super().__init__(next(iter(self.device_map.values())), autocast=autocast, scaler=scaler)

    def placement(self, *, quantized: bool) -> dict[str, Any]:
        """The map."""
        return {"device_map": self.device_map}

    def prepare(self, model: nn.Module, loss: LossFunction) -> nn.Module:
        """Spreads the model, adapters included, where it is not spread already."""
        inner = unwrapped(model)
        spread(inner, self.device_map)
        self.device = inner.get_output_embeddings().weight.device
        return super().prepare(model, loss)
