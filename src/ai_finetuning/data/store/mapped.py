"""A store that is there: its manifest, and its documents out of the map."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from ...errors import DataError, Reason
from ...system.files import read_bounded
from ..bad_rows import BadRows
from ..data_report import DataReport
from ..encode_report import EncodeReport
from ..example import Example
from ..files import TOKENS
from .arrays import KINDS, ArrayEntry, check, mapped
from .documents import joined, labels_of
from .plain import from_plain, to_plain

MANIFEST = TOKENS
# Of documents as they always were, and of pairs and judged answers, which a version before would train as plain ones.
PLAIN, JUDGED = 1, 2
_MOST_BYTES = 2**28
MARKS = np.array([0, 1, -1], dtype=np.int64)
_SOME = 2**16  # documents that are looked at together
# The arrays that every store has: (kind, numbers of an item); None is what the vocabulary needs.
ARRAYS: dict[str, tuple[str | None, int]] = {
    "tokens": (None, 1),
    "ends": ("<u8", 1),
    "runs": ("<u4", 2),
    "run_ends": ("<u8", 1),
    "characters": ("<u4", 1),
    "learnt": ("<u4", 1),
    "files": ("<u4", 1),
    "numbers": ("<i8", 1),
    "questions": ("<u8", 1),
    "contents": ("<u8", 2),
}


# What stores of pairs and of judged answers have beside them.
FURTHER: dict[str, dict[str, tuple[str, int]]] = {
    "sft": {},
    "preference": {"forks": ("<u4", 3), "sides": ("<u8", 2)},
    "kto": {"marks": ("<u2", 1)},
}
EVERY: dict[str, tuple[str | None, int]] = {**ARRAYS, **FURTHER["preference"], **FURTHER["kto"]}


@dataclass
class Source:
    """A file that was prepared."""

    path: str
    bytes: int
    sha256: str


@dataclass
class Part:
    """What is said of one thing that was read.

    Attributes:
        left: rows that max_samples left aside.
    """

    data: DataReport
    left: int = 0


@dataclass
class Manifest:
    """What a store says of itself.

    Attributes:
        version: of this format.
        tokenizer: digest of everything in the tokenizer that decides ids and rendering.
        code: digest of the code that made the tokens.
        settings: of `data`, as far as they decide tokens and labels.
        paths: what was read, as the user gave it.
        sources: the files.
        documents: rows of tokens.
        largest: the largest token id.
        digest: SHA-256 over the length, tokens, labels, fork and mark of every document, in order.
        parts, bad, report: what is said of the data.
        names: of files, for where a row stood.
        arrays: by name; a store may have more of them than this version knows.
    """

    version: int
    tokenizer: str
    code: str
    settings: dict[str, Any]
    paths: list[str]
    sources: list[Source]
    documents: int
    largest: int
    digest: str
    parts: list[Part]
    bad: BadRows
    report: EncodeReport
    names: list[str]
    arrays: dict[str, ArrayEntry] = field(default_factory=dict)


def write_manifest(manifest: Manifest) -> bytes:
    """A manifest as a file: JSON with its own hash."""
    content = to_plain(manifest)
    return json.dumps({"sha256": _hash(content), **content}, ensure_ascii=False, indent=1).encode(
        "utf-8", "surrogatepass"
    )


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def is_store(folder: Path) -> bool:
    """Whether a folder is prepared data, or calls itself so."""
    return (folder / MANIFEST).is_file()


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        DataError: damaged, or of another version.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(read_bounded(path, _MOST_BYTES).decode("utf-8", "surrogatepass"))
        own, version = content.pop("sha256"), content["version"]
        if version not in (PLAIN, JUDGED):
            raise DataError(
                f"{path} は形式 {version} です。この版のツールキットが読めるのは {PLAIN} と {JUDGED} です。`aift data prepare` で作り直してください。",
                f"{path} is of format {version}; this version of the toolkit reads {PLAIN} and {JUDGED}. Prepare the data anew with "
                "`aift data prepare`.",
            )
        if own != _hash(content):
            raise ValueError("its hash is another")
        manifest = from_plain(Manifest, content)
        _check_arrays(manifest)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        shown = str(error)[:100]
        raise DataError(
            f"{path} が壊れています（{shown}）。`aift data prepare` で作り直すか、コピーし直してください。",
            f"{path} is damaged ({shown}); prepare the data anew with `aift data prepare`, or copy it again.",
            Reason(f"{path} が壊れています。", f"{path} is damaged."),
        ) from None
    return manifest


def _check_arrays(manifest: Manifest) -> None:
    for name, (kind, width) in EVERY.items():
        if name not in ARRAYS and name not in manifest.arrays:
            continue
        entry = manifest.arrays[name]
        if entry.kind not in ((kind,) if kind else ("<u2", "<u4")) or entry.width != width:
            raise ValueError(f"array {name}")
        if name not in ("tokens", "runs") and entry.items != manifest.documents:
            raise ValueError(f"array {name}")
    for name, entry in manifest.arrays.items():
        if not name.isidentifier() or entry.kind not in KINDS or entry.width < 1 or entry.items < 0:
            raise ValueError(f"array {name[:40]!r}")


def file_of(folder: Path, name: str) -> Path:
    """The file of an array."""
    return folder / f"{name}.bin"


class StoredExamples(Sequence[Example]):
    """The documents of a store, made when they are asked for; their arrays stay in the files' own memory, which all
    processes of a machine share.

    Args:
        folder: of the store.
        manifest: of it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder, self._names = folder, manifest.names
        self.largest, self.digest = manifest.largest, manifest.digest
        known = [name for name in EVERY if name in manifest.arrays]
        self._arrays = {name: mapped(file_of(folder, name), manifest.arrays[name]) for name in known}
        self._count = manifest.documents

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        place = int(index)
        place += self._count if place < 0 else 0
        if not 0 <= place < self._count:
            raise IndexError(index)
        arrays = self._arrays
        start, stop = self._range("ends", place)
        ids = np.asarray(arrays["tokens"][start:stop]).astype(np.int32)
        first, last = self._range("run_ends", place)
        self._check(place, stop - start, ids, arrays["runs"][first:last])
        question = int(arrays["questions"][place])
        fork = tuple(map(int, arrays["forks"][place])) if "forks" in arrays else ()
        return Example(
            ids,
            labels_of(ids, arrays["runs"][first:last]),
            int(arrays["characters"][place]),
            self._source(place),
            f"{question:016x}" if question else "",
            fork,
            int(MARKS[arrays["marks"][place]]) if "marks" in arrays else 0,
        )

    def _check(self, place: int, length: int, ids: NDArray[np.int32], runs: NDArray[Any]) -> None:
        """Compares a document with what the manifest and the other arrays say of it, as it is read: a folder of somebody
        else's may hold any numbers, and its hashes fit them.

        Raises:
            DataError: a token beyond the largest, or places that are not there.
        """
        whole = len(ids) == length > 0 and int(ids.view(np.uint32).max()) <= self.largest
        held = len(runs) and int(runs.max()) <= length
        if not (whole and held and int(self._arrays["files"][place]) < len(self._names)):
            raise DataError(
                f"{self._folder} の {place + 1} 番目の文書は、tokens.json の内容と合いません（トークン番号は {self.largest} まで）。"
                "このフォルダーのデータは使わず、`aift data prepare` で作り直してください。",
                f"document {place + 1} of {self._folder} is not as tokens.json says (token ids up to {self.largest}); do not use "
                "this folder, and prepare the data anew with `aift data prepare`.",
            )

    def _range(self, name: str, place: int) -> tuple[int, int]:
        ends = self._arrays[name]
        return int(ends[place - 1]) if place else 0, int(ends[place])

    def _source(self, place: int) -> str:
        name = self._names[int(self._arrays["files"][place])]
        return joined(name, int(self._arrays["numbers"][place]))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[documents] int64: their tokens."""
        return np.diff(self._arrays["ends"], prepend=np.uint64(0)).astype(np.int64)

    def lengths_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """[places] int64: the tokens of some documents."""
        ends = self._arrays["ends"]
        begins = np.where(places > 0, ends[places - 1], 0)
        lengths: NDArray[np.int64] = (ends[places] - begins.astype(ends.dtype)).astype(np.int64)
        return lengths

    @property
    def learnt(self) -> NDArray[np.int64]:
        """[documents] int64: their label tokens."""
        return self._arrays["learnt"].astype(np.int64)

    def learnt_at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """[places] int64: the label tokens of some documents."""
        return self._arrays["learnt"][places].astype(np.int64)

    @property
    def characters(self) -> NDArray[np.int64]:
        """[documents] int64: characters of their label tokens."""
        return self._arrays["characters"].astype(np.int64)

    @property
    def forks(self) -> NDArray[np.int64]:
        """[documents, 3] int64: Example.fork of every one; 0 where they are no pairs."""
        if "forks" not in self._arrays:
            return np.zeros((self._count, 3), np.int64)
        return self._arrays["forks"].astype(np.int64)

    @property
    def marks(self) -> NDArray[np.int64]:
        """[documents] int64: Example.mark of every one."""
        return MARKS[self._arrays["marks"]] if "marks" in self._arrays else np.zeros(self._count, np.int64)

    def names(self, places: NDArray[np.int64] | None = None) -> Iterator[tuple[str, bytes, str]]:
        """(source, digest of the tokens, digest of the question) of some documents, or of all."""
        for first in range(0, self._count if places is None else len(places), _SOME):
            some = slice(first, first + _SOME) if places is None else places[first : first + _SOME]
            files, numbers, questions, contents = (
                np.asarray(self._arrays[name][some]) for name in ("files", "numbers", "questions", "contents")
            )
            for file, number, question, content in zip(
                files.tolist(), numbers.tolist(), questions.tolist(), contents, strict=True
            ):
                yield joined(self._names[file], number), content.tobytes(), f"{question:016x}" if question else ""


def open_store(folder: Path, *, every_block: bool = False) -> tuple[StoredExamples, Manifest]:
    """(documents, manifest) of a store. Sizes and the hashes of a few blocks are compared, however large it is.

    Args:
        every_block: compares all of it, which reads all of it.

    Raises:
        DataError: a file that is damaged, missing, or another than the manifest says.
    """
    manifest = read_manifest(folder)
    try:
        for name, entry in manifest.arrays.items():
            check(file_of(folder, name), entry, every_block=every_block)
        return StoredExamples(folder, manifest), manifest
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(
            f"{folder} のファイルを開けません（{error.filename}: {reason}）。コピーし直すか、`aift data prepare` で作り直してください。",
            f"a file of {folder} cannot be opened ({error.filename}: {reason}); copy it again, or prepare the data anew "
            "with `aift data prepare`.",
        ) from None
