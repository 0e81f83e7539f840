"""Models that are on this PC already: in folders nearby and in the hub's cache. Needs neither torch nor transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Reason, ToolkitError
from ..system.files import read_bounded, subfolders
from . import catalog
from .hub import missing_weights
from .source import weight_file_bytes

IN_FOLDER = Reason("このフォルダー", "this folder")
IN_CACHE = Reason("ハブのキャッシュ", "hub cache")
# Folders whose folders are looked at, beside the folder itself.
_BESIDE = ("models",)
# Of config.json, in all: those of real models have a few KB.
_BYTES = 8 << 20
_WRITES_TEXT = ("ForCausalLM", "LMHeadModel")


@dataclass(frozen=True)
class LocalModel:
    """A whole model on this PC.

    Attributes:
        name: what `model=` takes: a hub id or a folder.
        place: where it lies.
        size_bytes: of its weights.
    """

    name: str
    place: Reason
    size_bytes: int


def local_models(folder: Path) -> list[LocalModel]:
    """Models in a folder, in the folders in it and in its `models`, then those of the hub's cache; what a run has
    trained is not among them.
    """
    obtained = [
        LocalModel(f"./{path.relative_to(folder).as_posix()}", IN_FOLDER, weight_file_bytes(path))
        for path in _near(folder)
    ]
    return obtained + [LocalModel(name, IN_CACHE, weight_file_bytes(path)) for name, path in _in_cache()]


def _near(folder: Path) -> Iterator[Path]:
    left = _BYTES
    for path in (*subfolders(folder), *(inner for name in _BESIDE for inner in subfolders(folder / name))):
        with contextlib.suppress(OSError):
            size = (path / "config.json").stat().st_size
            if size > left:
                continue
            left -= size
        if not (path / "run.json").exists() and _is_model(path):
            yield path


def _in_cache() -> Iterator[tuple[str, Path]]:
    """(hub id, snapshot) of every whole model in the cache, by its documented layout."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for path in subfolders(Path(HF_HUB_CACHE)):
        kind, *name = path.name.split("--")
        try:
            revision = (path / "refs" / "main").read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            continue
        snapshot = path / "snapshots" / revision
        if kind == "models" and name and revision and _is_model(snapshot):
            yield "/".join(name), snapshot


def _is_model(folder: Path) -> bool:
    """Whether a folder holds a language model with all its weights."""
    try:
        config = json.loads(read_bounded(folder / "config.json", _BYTES))
        names = config.get("architectures") if isinstance(config, dict) else None
        writes = isinstance(names, list) and any(str(name).endswith(_WRITES_TEXT) for name in names)
        return writes and not missing_weights(folder)
    except (OSError, ValueError, RecursionError, ToolkitError):
        return False


def need_bytes(name: str, use: str) -> int | None:
    """Memory that a model of the catalog needs for a use (`infer`, `lora`, `qlora`, `full`); None for others."""
    row = catalog.lookup(name)
    gib = row.memory_gib.get(use) if row is not None else None
    return None if gib is None else int(gib * 2**30)
