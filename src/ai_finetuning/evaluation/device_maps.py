"""Where the layers of a model lie when it only answers: on one device, or over several GPUs of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..errors import ConfigError, ModelError
from ..models.loading import DTYPES, resolve_dtype
from ..models.placement import DeviceMap
from ..models.source import ModelSource
from ..parallel.strategies.device_map import Split
from ..planner.layers import split_model
from ..planner.memory import Workload, estimate
from ..planner.shape import meta_model, shape_of
from ..system.gpu import free_memory_bytes, get_available_device

Spreading = Literal["auto", "balanced", "none"]
SPREADINGS: tuple[Spreading, ...] = ("auto", "balanced", "none")
# Tokens that are computed at a time (likelihood.BUDGET; of answers, 16 conversations of 256), and what may be filled.
_TOKENS, _SHARE = 4096, 0.8


@dataclass(frozen=True)
class Placing:
    """How models are laid out; what `open_model(place=...)` asks.

    Attributes:
        how: `auto`: over the visible GPUs where one does not hold the model; `balanced`: always; `none`: on one device.
    """

    how: Spreading = "auto"

    def validate(self) -> None:
        """Refuses what this machine cannot do, before anything is loaded.

        Raises:
            ConfigError: `balanced` with fewer than two GPUs.
        """
        there = free_gpus()
        if self.how == "balanced" and len(there) < 2:
            raise ConfigError(
                f"--device-map balanced には見える GPU が 2 枚以上必要です（見える GPU: {len(there)} 枚）。--device-map を外してください。",
                f"--device-map balanced needs two or more visible GPUs ({len(there)} visible); leave --device-map out.",
            )

    def __call__(self, source: ModelSource, bits: int | None, dtype: str) -> DeviceMap | None:
        """The device of each module of a model; None for one device.

        Args:
            bits: 4 or 8 where its linear layers are loaded so.
            dtype: a name of loading.DTYPES, or `auto`.

        Raises:
            ConfigError: it does not fit, or (`balanced`) cannot be divided.
        """
        there = free_gpus()
        if self.how == "none" or len(there) < 2:
            return None
        model = meta_model(source)
        held = resolve_dtype(DTYPES.get(dtype, dtype), get_available_device())
        work = Workload(
            trainable=0, bits=bits, frozen_bytes=held.itemsize, tokens=_TOKENS, compute_bytes=held.itemsize, gpu=True
        )
        room = {index: int(_SHARE * free) for index, free in there.items()}
        if self.how == "auto" and estimate(shape_of(model), work, checkpointing=True).total <= room[0]:
            return None
        try:
            split = split_model(model, work, room, checkpointing=True)
        except ModelError as error:
            if self.how == "auto":
                return None
            raise ConfigError(
                f"{source.name} は層のリストが見つからないため、--device-map balanced で分けられません。--device-map none にしてください。",
                f"{source.name} has no single list of layers, so --device-map balanced cannot divide it; use --device-map none.",
            ) from error
        _validate_fit(source, split)
        return split.device_map()


def _validate_fit(source: ModelSource, split: Split) -> None:
    if split.fits:
        return
    parts = ("重み", "-", "計算中の値", "その他"), ("weights", "-", "activations", "other")
    ja, en = (joint.join(load.text(*words) for load in split.loads) for joint, words in zip("、;", parts, strict=True))
    raise ConfigError(
        f"{source.name} は見える GPU に分けても収まりません。{ja}。--bits 4 で量子化するか、GPU を空けるか、増やしてください。",
        f"{source.name} does not fit, even over the visible GPUs: {en}. Load it with --bits 4, free the GPUs, or use more.",
    )


def free_gpus() -> dict[int, int]:
    """Free bytes of each visible GPU, by its index."""
    return {index: free_memory_bytes(torch.device("cuda", index)) for index in range(torch.cuda.device_count())}
