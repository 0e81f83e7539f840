"""Compressed files: one table or text inside, by gzip, bzip2, xz, Zstandard or zip."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import DataError

# Bytes that a file may become when it is unpacked or decoded: a stranger's file of a few kilobytes can name terabytes.
_FREE, _TIMES = 32 * 2**20, 200


def limit_of(size: int) -> int:
    """Bytes that a compressed file of some bytes may become."""
    return _FREE + _TIMES * size


def too_big(name: str, size: int) -> DataError:
    """The refusal of a file that becomes more than that."""
    limit = limit_of(size) // 2**20
    return DataError(
        f"{name} は展開すると {limit:,} MiB（元の {_TIMES} 倍）を超えます。正しいファイルなら、展開するか分けてから指定してください。",
        f"{name} becomes more than {limit:,} MiB when it is unpacked ({_TIMES} times its size); if the file is right, "
        "unpack or divide it first.",
    )


def _zstd(raw: bytes) -> bytes:
    import pyarrow

    with pyarrow.input_stream(io.BytesIO(raw), compression="zstd") as stream:
        return bounded(stream, limit_of(len(raw)))


def bounded(stream: Any, limit: int) -> bytes:
    """What a stream holds.

    Raises:
        OverflowError: more than `limit` bytes.
    """
    parts, size = [], 0
    while part := stream.read(2**20):
        size += len(part)
        if size > limit:
            raise OverflowError
        parts.append(bytes(part))
    return b"".join(parts)


def _by(library: Any) -> Callable[[bytes], bytes]:
    def unpack_with(raw: bytes) -> bytes:
        with library.open(io.BytesIO(raw), "rb") as stream:
            return bounded(stream, limit_of(len(raw)))

    return unpack_with


UNPACK: dict[str, Callable[[bytes], bytes]] = {".gz": _by(gzip), ".bz2": _by(bz2), ".xz": _by(lzma), ".zst": _zstd}


def kind_of(path: Path) -> str:
    """The ending that names a file's kind, without that of its compression."""
    return (Path(path.stem) if path.suffix.lower() in UNPACK else path).suffix.lower()


def unpack(path: Path, kinds: set[str]) -> tuple[bytes, str, list[tuple[str, str]]]:
    """(bytes, kind, notes) of a file, unpacked.

    Args:
        path: the file.
        kinds: endings that can be read; a zip holds one file of them.

    Raises:
        DataError: damaged, too big, or a zip with none or several of them.
    """
    raw = path.read_bytes()
    suffix = path.suffix.lower()
    try:
        if suffix == ".zip":
            return _unzip(path, raw, kinds)
        return (UNPACK[suffix](raw) if suffix in UNPACK else raw), kind_of(path), []
    except OverflowError:
        raise too_big(str(path), len(raw)) from None
    except DataError:
        raise
    except Exception as error:  # zipfile and the decompressors raise many kinds for damaged bytes
        if suffix not in UNPACK and suffix != ".zip":
            raise
        kind = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard", ".zip": "zip"}[suffix]
        raise DataError(f"{path} の {kind} が壊れています（{error}）。", f"{path}: damaged {kind} ({error}).") from None


def _unzip(path: Path, raw: bytes, kinds: set[str]) -> tuple[bytes, str, list[tuple[str, str]]]:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = [item for item in archive.infolist() if not item.is_dir() and not _is_hidden(item.filename)]
        tables = [item for item in members if Path(item.filename).suffix.lower() in kinds]
        names = ", ".join(item.filename for item in (tables or members)[:10])
        if len(tables) != 1:
            raise DataError(
                f"{path} の中の読めるファイルが {len(tables)} 個です（{names or '空'}）。展開して data.train に並べるか、1 つだけ入れてください。",
                f"{path} holds {len(tables)} files that can be read ({names or 'nothing'}); unpack it and list them in "
                "data.train, or leave one in it.",
            )
        with archive.open(tables[0]) as stream:
            content = bounded(stream, limit_of(len(raw)))
        others = [item.filename for item in members if item is not tables[0]]
        notes = [(f"{tables[0].filename} を読みました", f"read {tables[0].filename}")]
        if others:
            notes.append((f"読まないファイル: {', '.join(others[:10])}", f"files not read: {', '.join(others[:10])}"))
        return content, Path(tables[0].filename).suffix.lower(), notes


def _is_hidden(name: str) -> bool:
    parts = Path(name).parts
    return any(part.startswith((".", "__MACOSX")) for part in parts)
