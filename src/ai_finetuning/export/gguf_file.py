"""The metadata of a GGUF file, read and rewritten; tensors are copied as they are.

Layout (version 3, little-endian; gguf.md in the documentation of ggml): magic, version, number of tensors, number of
key-value pairs, the pairs, a description of each tensor with its offset from the start of the data, padding, the data.
Offsets do not depend on the metadata, so it can grow or shrink.
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import ModelError

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
# Kinds of tokens, as in `tokenizer.ggml.token_type`.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class Value:
    """A metadata value with its type; `item` is the type of an array's entries."""

    kind: int
    value: Any
    item: int | None = None


@dataclass(frozen=True)
class Header:
    """The part of the file before the data.

    Attributes:
        values: metadata by key, in the file's order.
        tensors: (name, shape, type, offset) of each tensor, as bytes ready to be written again.
        tensor_names: in the file's order.
        data_offset: where the data starts.
    """

    values: dict[str, Value]
    tensors: bytes
    tensor_names: list[str]
    data_offset: int


def read_header(path: Path) -> Header:
    """Metadata and tensor descriptions of a GGUF file.

    Raises:
        ModelError: it is no GGUF file of version 3, or it is cut off.
    """
    with path.open("rb") as file:
        try:
            return _header(file)
        except (struct.error, UnicodeDecodeError, KeyError) as error:
            raise ModelError(
                f"{path} を GGUF として読めません（{error}）。変換をやり直してください。",
                f"{path} cannot be read as GGUF ({error}); convert it again.",
            ) from error


def _header(file: BinaryIO) -> Header:
    magic, version, tensors, pairs = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version != 3:
        raise struct.error(f"magic {magic!r}, version {version}")
    values = {}
    for _ in range(pairs):
        key = _string(file)
        kind = _scalar(file, UINT32)
        values[key] = _value(file, kind)
    start = file.tell()
    names = []
    for _ in range(tensors):
        names.append(_string(file))
        dimensions = _scalar(file, UINT32)
        file.seek(8 * dimensions + 4 + 8, io.SEEK_CUR)
    end = file.tell()
    file.seek(start)
    described = file.read(end - start)
    alignment = values[_ALIGNMENT].value if _ALIGNMENT in values else 32
    return Header(values, described, names, end + -end % alignment)


def _scalar(file: BinaryIO, kind: int) -> Any:
    form = _SCALARS[kind]
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, 10)).decode("utf-8", errors="surrogateescape")


def _value(file: BinaryIO, kind: int) -> Value:
    if kind == STRING:
        return Value(kind, _string(file))
    if kind != ARRAY:
        return Value(kind, _scalar(file, kind))
    item, count = _scalar(file, UINT32), _scalar(file, 10)
    if item in _SCALARS:
        form = f"<{count}{_SCALARS[item][1:]}"
        return Value(kind, list(struct.unpack(form, file.read(struct.calcsize(form)))), item)
    return Value(kind, [_value(file, item).value for _ in range(count)], item)


def rewrite(source: Path, target: Path, changes: Mapping[str, Value]) -> None:
    """Copies a GGUF file with some metadata set; the tensors stay byte for byte.

    Raises:
        ModelError: the source is no GGUF file. OSError: the target cannot be written.
    """
    header = read_header(source)
    values = {**header.values, **changes}
    with source.open("rb") as old, target.open("wb") as new:
        new.write(struct.pack("<4sIQQ", b"GGUF", 3, len(header.tensor_names), len(values)))
        for key, value in values.items():
            new.write(_packed_string(key) + struct.pack("<I", value.kind) + _packed(value))
        new.write(header.tensors)
        alignment = values[_ALIGNMENT].value if _ALIGNMENT in values else 32
        new.write(b"\0" * (-new.tell() % alignment))
        old.seek(header.data_offset)
        shutil.copyfileobj(old, new, 1 << 22)


def _packed_string(text: str) -> bytes:
    raw = text.encode("utf-8", errors="surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _packed(value: Value) -> bytes:
    if value.kind == STRING:
        return _packed_string(value.value)
    if value.kind != ARRAY:
        return struct.pack(_SCALARS[value.kind], value.value)
    assert value.item is not None
    head = struct.pack("<IQ", value.item, len(value.value))
    if value.item in _SCALARS:
        return head + struct.pack(f"<{len(value.value)}{_SCALARS[value.item][1:]}", *value.value)
    return head + b"".join(_packed(Value(value.item, entry)) for entry in value.value)
