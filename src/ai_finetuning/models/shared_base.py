"""Which adapters can lie on one set of weights, told by their folders. Needs neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import ToolkitError
from ..system import nvml
from ..system.files import read_bounded
from .adapter_folder import STARTS, places_of_base, recorded_base, recorded_config
from .catalog import rows
from .hub import on_disk

_LARGEST = 4 << 20


def shared_base(adapter: Path) -> tuple[str, int | None] | None:
    """What adapters have in common whose answers can come from one set of weights: the base's place, and its bits.

    None where an adapter needs weights of its own: it changes its base, or nobody sees here what its base is, or the
    base's weights are changed by their first use, as bitsandbytes does with 8 bit everywhere and with 4 bit on CPUs.

    Args:
        adapter: a folder of one.
    """
    try:
        config, recorded = recorded_config(adapter), recorded_base(adapter)
        if config.get("init_lora_weights", True) not in STARTS or config.get("layer_replication"):
            return None
        if recorded.bits == 8 or (recorded.bits == 4 and not nvml.gpus()):
            return None
        place = _folder(recorded.name) or next(iter(places_of_base(adapter)), None)
        values = json.loads(read_bounded(place / "config.json", _LARGEST)) if place is not None else None
    except (ToolkitError, OSError, ValueError, RecursionError, TypeError):
        return None
    if place is None or not isinstance(values, dict) or values.get("quantization_config"):
        return None
    return str(place.resolve()), recorded.bits


def _folder(name: str) -> Path | None:
    """Where the files of a model lie on this PC; nothing is asked of the hub."""
    row = rows().get(name)
    name = row.alias_of if row is not None and row.alias_of is not None else name
    folder = on_disk(name)
    if folder is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json")
    return Path(found).parent if isinstance(found, str) else None
