"""Tensors to safetensors with the hash computed while writing, and the durable file operations around it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...parallel.weights.layout import Layout

# https://github.com/huggingface/safetensors: 8 bytes little-endian header length, JSON header, then the raw bytes.
DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Cancelled(Exception):
    """The checkpoint being written is no longer needed."""


def raise_if_cancelled(cancelled: threading.Event | None) -> None:
    """Raises Cancelled where the event is set."""
    if cancelled is not None and cancelled.is_set():
        raise Cancelled


def write_durably(path: Path, content: bytes) -> str:
    """Writes and fsyncs a new file (a checkpoint's folder is new, so that nothing of the name is there); returns its
    SHA-256.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()


def write_tensors(
    path: Path,
    tensors: dict[str, Tensor],
    cancelled: threading.Event | None = None,
    layouts: Mapping[str, Layout] | None = None,
) -> tuple[int, str, dict[str, Any]]:
    """Writes a new safetensors file in one pass, a tensor at a time.

    Args:
        layouts: of the tensors that are parts of larger ones.

    Returns:
        (bytes, SHA-256, entries for the manifest: shape, dtype and slice of the global tensor).

    Raises:
        Cancelled: the event was set on the way.
    """
    header: dict[str, Any] = {}
    entries: dict[str, Any] = {}
    offset = 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        layout = layouts.get(name) if layouts is not None else None
        entries[name] = {
            "shape": list(tensor.shape if layout is None else layout.shape),
            "dtype": DTYPE_NAMES[tensor.dtype],
            "slice": [[0, length] for length in tensor.shape] if layout is None else layout.ranges(),
        }
        offset += size
    head = json.dumps(header, separators=(",", ":")).encode("utf-8")
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for part in (struct.pack("<Q", len(head)), head):
            file.write(part)
            digest.update(part)
        for tensor in tensors.values():
            raise_if_cancelled(cancelled)
            flat = tensor.detach().to("cpu").contiguous().reshape(-1)
            if flat.numel():
                raw = flat.view(torch.uint8).numpy().data
                file.write(raw)
                digest.update(raw)
        file.flush()
        os.fsync(file.fileno())
    return 8 + len(head) + offset, digest.hexdigest(), entries
