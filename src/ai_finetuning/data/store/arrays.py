"""The arrays of a store: flat files of numbers, written at their end, with a hash of every block."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError

# Bytes under one hash, and blocks of each array that are looked at when a store is opened.
BLOCK, LOOKED_AT = 2**22, 4
KINDS = ("<u2", "<u4", "<u8", "<i8")


@dataclass
class ArrayEntry:
    """What a manifest says of an array.

    Attributes:
        kind: of its numbers, one of KINDS.
        width: numbers of an item.
        items: how many there are.
        hashes: SHA-256 of every block of its bytes.
    """

    kind: str
    width: int = 1
    items: int = 0
    hashes: list[str] = field(default_factory=list)

    @property
    def item_bytes(self) -> int:
        """Bytes of an item."""
        return np.dtype(self.kind).itemsize * self.width

    @property
    def bytes(self) -> int:
        """Bytes of the file."""
        return self.item_bytes * self.items


class ArrayWriter:
    """Writes an array at its end.

    Args:
        path: the file; where `entry` has items it is there, and what stands behind them is taken away.
        entry: what is there so far; grows.
    """

    def __init__(self, path: Path, entry: ArrayEntry) -> None:
        self.entry = entry
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        self._file = os.fdopen(os.open(path, flags, 0o666), "r+b")
        whole = entry.bytes // BLOCK
        entry.hashes = entry.hashes[:whole]
        self._file.truncate(entry.bytes)
        self._file.seek(whole * BLOCK)
        begun = self._file.read()
        self._hash, self._in_block = hashlib.sha256(begun), len(begun)

    def append(self, values: NDArray[Any]) -> None:
        """Adds items."""
        raw = memoryview(np.ascontiguousarray(values, dtype=self.entry.kind).reshape(-1).view(np.uint8).data)
        self._file.write(raw)
        self.entry.items += len(raw) // self.entry.item_bytes
        while len(raw):
            part = raw[: BLOCK - self._in_block]
            self._hash.update(part)
            self._in_block += len(part)
            raw = raw[len(part) :]
            if self._in_block == BLOCK:
                self.entry.hashes.append(self._hash.hexdigest())
                self._hash, self._in_block = hashlib.sha256(), 0

    def reached(self) -> ArrayEntry:
        """The entry as it is now, with a hash of the block that is not full yet."""
        begun = [self._hash.hexdigest()] if self._in_block else []
        return replace(self.entry, hashes=self.entry.hashes + begun)

    def sync(self) -> None:
        """Makes what was added durable."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, *, whole: bool) -> None:
        """Closes the file; the last block gets its hash where the array is whole."""
        if whole and self._in_block:
            self.entry.hashes.append(self._hash.hexdigest())
        self._file.close()


def mapped(path: Path, entry: ArrayEntry) -> NDArray[Any]:
    """The array in the file's own memory: [items] or [items, width]; nothing is read yet.

    Raises:
        OSError, ValueError: it is not there, or is shorter.
    """
    shape = (entry.items,) if entry.width == 1 else (entry.items, entry.width)
    if not entry.items:
        return np.zeros(shape, dtype=entry.kind)
    return np.memmap(path, dtype=entry.kind, mode="r", shape=shape)


def begins_with(path: Path, entry: ArrayEntry) -> bool:
    """Whether a file begins with what an entry says: all of its blocks are read, and what stands behind them is not.

    Raises:
        OSError: it cannot be read.
    """
    left = entry.bytes
    with path.open("rb") as file:
        for expected in entry.hashes:
            block = file.read(min(BLOCK, left))
            left -= len(block)
            if hashlib.sha256(block).hexdigest() != expected:
                return False
    return not left


def check(path: Path, entry: ArrayEntry, *, every_block: bool) -> None:
    """Compares a file with its entry: its size, and the hashes of all blocks or of a few from the first to the last.

    Raises:
        DataError: it is another file. OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size != entry.bytes or len(entry.hashes) != -(-size // BLOCK):
        raise _changed(path, f"{size:,} / {entry.bytes:,}", "サイズ（バイト）", "size in bytes")
    with path.open("rb") as file:
        for place in _places(len(entry.hashes), every_block):
            file.seek(place * BLOCK)
            if hashlib.sha256(file.read(BLOCK)).hexdigest() != entry.hashes[place]:
                raise _changed(
                    path, f"{place + 1} / {len(entry.hashes)}", "ハッシュの合わないブロック", "block with another hash"
                )


def _places(blocks: int, every_block: bool) -> Iterator[int]:
    if every_block or blocks <= LOOKED_AT:
        yield from range(blocks)
    else:
        yield from (round(step * (blocks - 1) / (LOOKED_AT - 1)) for step in range(LOOKED_AT))


def _changed(path: Path, found: str, ja: str, en: str) -> DataError:
    return DataError(
        f"{path} は、用意したときの内容ではありません（{ja}: {found}）。`aift data prepare` で作り直すか、コピーし直してください。",
        f"{path} is not what was prepared ({en}: {found}); prepare the data anew with `aift data prepare`, or copy it again.",
    )
