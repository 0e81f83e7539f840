"""Reads any part of a checkpoint's tensors from whichever files hold it, so that a run resumes under any other
layout.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...config.run_folder import MANIFEST
from ...parallel.weights.layout import Layout
from .write import DTYPE_NAMES

DTYPES = {name: dtype for dtype, name in DTYPE_NAMES.items()}
Ranges = list[list[int]]


def pieces_of(entry: dict[str, Any] | list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pieces of one tensor; a manifest names a tensor in one piece without a list."""
    return entry if isinstance(entry, list) else [entry]


def read_tensors(
    folder: Path, manifest: dict[str, Any], layouts: Mapping[str, Layout] | None
) -> dict[str, dict[str, Tensor]]:
    """Tensors by group; with layouts, this rank's parts of the weights named there and of their optimizer state.

    Raises:
        ValueError: the pieces do not cover the expected range.
    """
    tensors: dict[str, dict[str, Tensor]] = {}
    with _Files(folder) as files:
        for key, entry in manifest["tensors"].items():
            group, _, name = key.partition(":")
            pieces = pieces_of(entry)
            whole = [[0, length] for length in pieces[0]["shape"]]
            expected = _wanted(group, name, whole, layouts)
            if expected is not None:
                tensors.setdefault(group, {})[name] = files.read(name, pieces, expected)
    return tensors


def write_shards(
    place: Path, checkpoint: Path, *, dtype: torch.dtype, tied: set[str], shard_bytes: int = 5 * 10**9
) -> None:
    """The weights of a checkpoint as a Hugging Face model's files: shards of at most shard_bytes and their index.

    Args:
        tied: names that are left out, since loading ties them to others.
    """
    manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
    names = [key.partition(":")[2] for key in manifest["tensors"] if key.startswith("model:")]
    shards: list[dict[str, int]] = [{}]
    for name in sorted(set(names) - tied):
        size = math.prod(pieces_of(manifest["tensors"][f"model:{name}"])[0]["shape"]) * dtype.itemsize
        if shards[-1] and sum(shards[-1].values()) + size > shard_bytes:
            shards.append({})
        shards[-1][name] = size
    files = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    files = ["model.safetensors"] if len(shards) == 1 else files
    with _Files(checkpoint) as source:
        for file, shard in zip(files, shards, strict=True):
            tensors = {}
            for name in shard:
                pieces = pieces_of(manifest["tensors"][f"model:{name}"])
                tensors[name] = source.read(name, pieces, [[0, length] for length in pieces[0]["shape"]]).to(dtype)
            save_file(tensors, place / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        total = sum(sum(shard.values()) for shard in shards)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (place / "model.safetensors.index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _wanted(group: str, name: str, whole: Ranges, layouts: Mapping[str, Layout] | None) -> Ranges | None:
    """The part to read; None where this rank does not hold the weight."""
    if layouts is None:
        return whole
    layout = layouts.get(name if group == "model" else name.rpartition("/")[0])
    if layout is None:
        return None
    # Moments have their weight's shape and are cut like it; counters and scales are whole everywhere.
    return layout.ranges() if [end for _, end in whole] == list(layout.shape) and whole else whole


class _Files:
    """Opens each file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def _file(self, name: str) -> Any:
        if name not in self._open:
            self._open[name] = self._stack.enter_context(safe_open(self._folder / name, framework="pt"))
        return self._open[name]

    def read(self, name: str, pieces: list[dict[str, Any]], expected: Ranges) -> Tensor:
        """One part, put together from the pieces that overlap it."""
        if len(pieces) == 1 and pieces[0]["slice"] == expected:
            obtained: Tensor = self._file(pieces[0]["file"]).get_tensor(name)
            return obtained
        result = torch.empty([end - start for start, end in expected], dtype=DTYPES[pieces[0]["dtype"]])
        covered = 0
        for piece, common in _overlapping(pieces, expected):
            inside = tuple(
                slice(a - start, b - start) for (a, b), (start, _) in zip(common, piece["slice"], strict=True)
            )
            place = tuple(slice(a - start, b - start) for (a, b), (start, _) in zip(common, expected, strict=True))
            part = self._file(piece["file"]).get_slice(name)[inside]
            result[place] = part
            covered += part.numel()
        if covered != result.numel():
            raise ValueError(f"the checkpoint holds {covered} of the {result.numel()} expected values of {name}")
        return result


def _overlapping(pieces: list[dict[str, Any]], expected: Ranges) -> Iterator[tuple[dict[str, Any], Ranges]]:
    for piece in pieces:
        common = [[max(a, start), min(b, end)] for (a, b), (start, end) in zip(piece["slice"], expected, strict=True)]
        if all(a < b for a, b in common):
            yield piece, common
