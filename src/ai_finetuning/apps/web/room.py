"""Whether a model fits into the memory that is free, told before any of it is loaded."""

from __future__ import annotations

from pathlib import Path

from ...errors import ModelError
from ...models.source import ModelSource, weight_file_bytes
from ...planner.memory import KBIT_BYTES
from ...system.gpu import free_memory_bytes, get_available_device

# Beside the weights: the libraries, and the keys and values of a conversation.
_BESIDE = 1 << 28
_GIB = 2**30
_WIDE = ("float32", "float64")


class NoRoomError(ModelError):
    """A model does not fit beside what is in memory now."""


def needed_bytes(source: ModelSource, bits: int | None) -> int:
    """Memory that a model takes while it answers; 0 where its files are not on this PC.

    Args:
        bits: 4 or 8 where it is loaded quantized.
    """
    stored = weight_file_bytes(_folder(source))
    if not stored:
        return 0
    if bits in KBIT_BYTES and not source.quantization:
        wide = str(source.text.get("dtype") or source.text.get("torch_dtype")) in _WIDE
        stored = int(stored / (4 if wide else 2) * KBIT_BYTES[bits])
    return stored + _BESIDE


def refuse_without_room(source: ModelSource, bits: int | None, dtype: str, *, free: int | None = None) -> None:
    """Refuses a model that does not fit; as open_model's `place` it leaves the device to it.

    Args:
        free: bytes; None asks the device that models are loaded on.

    Raises:
        NoRoomError: with both numbers.
    """
    device = get_available_device()
    free = free_memory_bytes(device) if free is None else free
    needed = needed_bytes(source, bits)
    if needed > free:
        where = "GPU" if device.type != "cpu" else "RAM"
        raise NoRoomError(
            f"メモリーが足りないため {source.name} を読み込みません（必要 約 {needed / _GIB:.1f} GiB、{where} の空き {free / _GIB:.1f} GiB）。ほかのモデルや学習を終えるか、小さいモデルを選んでください。",
            f"not loading {source.name}: it needs about {needed / _GIB:.1f} GiB, and {free / _GIB:.1f} GiB of the {where} are "
            "free. End other models or trainings, or choose a smaller model.",
        )


def _folder(source: ModelSource) -> Path:
    """Where the files of a model lie; of a hub's id in the hub's cache."""
    if Path(source.path).is_dir():
        return Path(source.path)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.path, "config.json")
    return Path(found).parent if isinstance(found, str) else Path("/nonexistent")
