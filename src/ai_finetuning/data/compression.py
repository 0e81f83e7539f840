"""Compressed files: one table or text inside, by gzip, bzip2, xz, Zstandard or zip."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DataError
from ..messages import on_one_line
from ..system.files import sha256_of
from .rows import Content, parsing

# Bytes that a file may become when it is unpacked or decoded: a stranger's file of a few kilobytes can name terabytes.
_FREE, _TIMES = 32 * 2**20, 200
_BUFFER = 2**17
# Files that a message names.
_NAMED = 10


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


def _zstd(raw: BinaryIO) -> Any:
    import pyarrow

    return pyarrow.input_stream(raw, compression="zstd")


class _Hashed:
    """A file whose SHA-256 is made by whoever first reads it from its beginning to its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha256: str | None = None

    def open(self) -> BinaryIO:
        """Its bytes, from the beginning."""
        return (
            self._path.open("rb", _BUFFER)
            if self._sha256 is not None
            else io.BufferedReader(_HashedBytes(self._path, self), _BUFFER)
        )

    def tell(self, sha256: str) -> None:
        """Takes what a reading came to."""
        self._sha256 = sha256

    def sha256(self) -> str:
        """The hash; where no reading was whole, the file is read for it."""
        if self._sha256 is None:
            self._sha256 = sha256_of(self._path)
        return self._sha256


class _HashedBytes(io.FileIO):
    """The bytes of a file, hashed as they are read; of one in which somebody moves about there is no hash."""

    def __init__(self, path: Path, file: _Hashed) -> None:
        super().__init__(path)
        self._hash, self._of = hashlib.sha256(), file
        self._straight = True

    def readinto(self, buffer: Any, /) -> int:
        count = super().readinto(buffer) or 0
        self._add(memoryview(buffer)[:count], ended=not count and len(buffer) > 0)
        return count

    def readall(self) -> bytes:
        content = super().readall() or b""
        self._add(content, ended=True)
        return content

    def seek(self, place: int, whence: int = 0, /) -> int:
        self._straight = False
        return super().seek(place, whence)

    def _add(self, some: bytes | memoryview, *, ended: bool) -> None:
        self._hash.update(some)
        if ended and self._straight:
            self._of.tell(self._hash.hexdigest())


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, as a stream.

    Args:
        file: of the compressed bytes, closed with this stream.
        opened: gives the stream of what they unpack to.
        name, kind: of the file, for the messages.
        limit: bytes that it may become.
        refusal: of a file that becomes more.

    Raises (while it is read):
        DataError: the refusal, or damaged bytes.
    """

    def __init__(
        self, file: BinaryIO, opened: Callable[[BinaryIO], Any], name: str, kind: str, limit: int, refusal: DataError
    ) -> None:
        self._file, self._name, self._kind, self._left, self._refusal = file, name, kind, limit, refusal
        with parsing(name, kind):
            self._stream = opened(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with parsing(self._name, self._kind):
            part = self._stream.read(len(buffer))
        self._left -= len(part)
        if self._left < 0:
            raise self._refusal
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


def bounded(stream: Any, limit: int, refusal: DataError) -> bytes:
    """What a stream holds.

    Raises:
        DataError: the refusal, for more than `limit` bytes.
    """
    parts, size = [], 0
    while part := stream.read(2**20):
        size += len(part)
        if size > limit:
            raise refusal
        parts.append(bytes(part))
    return b"".join(parts)


# (name, opens a stream of what the bytes unpack to) by ending.
UNPACK: dict[str, tuple[str, Callable[[BinaryIO], Any]]] = {
    ".gz": ("gzip", gzip.open),
    ".bz2": ("bzip2", bz2.open),
    ".xz": ("xz", lzma.open),
    ".zst": ("Zstandard", _zstd),
}


def kind_of(path: Path) -> str:
    """The ending that names a file's kind, without that of its compression."""
    return (Path(path.stem) if path.suffix.lower() in UNPACK else path).suffix.lower()


def unpacked(path: Path, kinds: set[str], *, hashed: bool = False) -> tuple[Content, str, list[tuple[str, str]]]:
    """(bytes, kind, notes) of a file, unpacked while they are read.

    Args:
        path: the file.
        kinds: endings that can be read; a zip holds one file of them.
        hashed: whether its hash is wanted.

    Raises:
        DataError: a zip that is damaged, or holds none or several of them. While it is read: damaged, or too big.
    """
    suffix, size = path.suffix.lower(), path.stat().st_size
    last: list[BinaryIO] = []
    whole = _Hashed(path) if hashed else None
    sha256 = whole.sha256 if whole is not None else None

    def reading() -> BinaryIO:
        last[:] = [whole.open() if whole is not None else path.open("rb", _BUFFER)]
        return last[0]

    def position() -> int:
        return last[0].tell() if last and not last[0].closed else size

    if suffix == ".zip":
        with parsing(str(path), "zip"), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            member, notes = _only_table(path, archive, kinds)
        kind, opened = "zip", _member(member)
        inner = Path(member.filename).suffix.lower()
    elif suffix in UNPACK:
        (kind, opened), inner, notes = UNPACK[suffix], kind_of(path), []
    else:
        return Content(reading, path, position, sha256), kind_of(path), []

    def stream() -> BinaryIO:
        raw = _Unpacked(reading(), opened, str(path), kind, limit_of(size), too_big(str(path), size))
        return io.BufferedReader(raw, 2**20)

    return Content(stream, position=position, sha256=sha256), inner, notes


def _member(member: zipfile.ZipInfo) -> Callable[[BinaryIO], Any]:
    return lambda file: zipfile.ZipFile(file).open(member)


def unpack(path: Path, kinds: set[str]) -> tuple[bytes, str, list[tuple[str, str]]]:
    """The same with all bytes in memory.

    Raises:
        DataError: damaged, too big, or a zip with none or several of them.
    """
    content, kind, notes = unpacked(path, kinds)
    return content.raw, kind, notes


def _only_table(path: Path, archive: zipfile.ZipFile, kinds: set[str]) -> tuple[zipfile.ZipInfo, list[tuple[str, str]]]:
    """(the one file of an archive that can be read, notes about the others).

    Raises:
        DataError: none, or several.
    """
    members = [item for item in archive.infolist() if not item.is_dir() and not _is_hidden(item.filename)]
    tables = [item for item in members if Path(item.filename).suffix.lower() in kinds]
    names = some_of([_name(item) for item in tables or members])
    if len(tables) != 1:
        raise DataError(
            f"{path} の中の読めるファイルが {len(tables)} 個です（{names or '空'}）。展開して data.train に並べるか、1 つだけ入れてください。",
            f"{path} holds {len(tables)} files that can be read ({names or 'nothing'}); unpack it and list them in "
            "data.train, or leave one in it.",
        )
    others = some_of([_name(item) for item in members if item is not tables[0]])
    notes = [(f"{_name(tables[0])} を読みました", f"read {_name(tables[0])}")]
    if others:
        notes.append((f"読まないファイル: {others}", f"files not read: {others}"))
    return tables[0], notes


def _name(item: zipfile.ZipInfo) -> str:
    """The name of a file in an archive; that of Windows in Japan is CP932, which zipfile reads as the PC's first code page."""
    if item.flag_bits & 0x800:  # UTF-8, as the archive says
        return on_one_line(item.filename)
    try:
        return on_one_line(item.filename.encode("cp437").decode("cp932"))
    except UnicodeError:
        return on_one_line(item.filename)


def some_of(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f", … (+{len(names) - _NAMED})" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _is_hidden(name: str) -> bool:
    parts = Path(name).parts
    return any(part.startswith((".", "~$", "__MACOSX")) for part in parts)
