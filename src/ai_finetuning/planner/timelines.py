"""Simulated steps, kept in the user's cache folder: the same step is simulated once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from ..parallel.batch import Batch
from ..system.files import is_private, write_in_place
from ..system.folders import cache_folder, private_cache
from .phases import PHASES, Timeline

_KIND = "timelines"
_ROOMS = ("data", "engine", "execution", "kernels", "models", "parallel", "planner")
_LIBRARIES = ("ai-finetuning-toolkit", "torch", "transformers", "peft", "bitsandbytes", "accelerate")


def remembered(
    key: Mapping[str, Any], group: Sequence[Batch], make: Callable[[], Sequence[Timeline]]
) -> list[Timeline]:
    """The timelines of a step, one for each device of the process, simulated where they are not known yet.

    Args:
        key: everything else that the step depends on, as JSON; versions of libraries, and a mark of the toolkit's own code,
            are added.
        group: its micro-batches, of which shapes, lengths and numbers of labels count.
    """
    name = _file_name(key, group)
    known = _read(name)
    if known is not None:
        return known
    made = list(make())
    kept = [{name: value for name, value in asdict(timeline).items() if name != "seconds"} for timeline in made]
    with contextlib.suppress(OSError):
        write_in_place(private_cache(_KIND) / name, json.dumps(kept).encode("utf-8"))
    return made


def _file_name(key: Mapping[str, Any], group: Sequence[Batch]) -> str:
    shapes = [
        [list(batch.input_ids.shape), batch.row_lengths, batch.num_label_tokens, batch.num_label_columns]
        for batch in group
    ]
    versions = {name: _version(name) for name in _LIBRARIES}
    text = json.dumps([dict(key), shapes, versions, code_digest()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:32] + ".json"


@functools.cache
def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """A mark of the toolkit's own code that a step runs, by its files' sizes and times: a checkout that was edited keeps its
    version. A few milliseconds.
    """
    found = hashlib.sha256()
    for room in _ROOMS:
        for folder, inner, files in os.walk(package / room):
            inner[:] = sorted(name for name in inner if name != "__pycache__")
            for name in sorted(files):
                file = os.path.join(folder, name)
                known = os.stat(file)
                found.update(f"{os.path.relpath(file, package)} {known.st_size} {known.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _read(name: str) -> list[Timeline] | None:
    """Kept timelines; None where there are none, or none that can be read."""
    if not cache_folder(_KIND).is_dir():
        return None
    file = private_cache(_KIND) / name
    try:
        kept = json.loads(file.read_text(encoding="utf-8")) if is_private(file) else None
        return [_timeline(one) for one in kept] if isinstance(kept, list) and kept else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _timeline(kept: Mapping[str, Any]) -> Timeline:
    phases = {phase: int(kept["phases"][phase]) for phase in PHASES if phase in kept["phases"]}
    if not phases:
        raise ValueError("no phases")
    layers, unknown = tuple(map(int, kept["layers"])), tuple(map(str, kept["unknown"]))
    device = None if kept["device"] is None else int(kept["device"])
    return Timeline(phases, int(kept["reserved"]), layers, unknown, device=device)
