"""Writes a store some documents at a time, so that what is written stays when the writing is interrupted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import StorageError, ToolkitError
from ...system.files import fsync_folder, read_bounded, write_in_place
from ..pieces import Account
from .arrays import ArrayEntry, ArrayWriter, begins_with, mapped
from .documents import Documents, further_of, labels_of
from .mapped import ARRAYS, EVERY, FURTHER, MANIFEST, MARKS, Manifest, file_of, write_manifest
from .plain import from_plain, to_plain

PROGRESS = "progress.json"
_MOST_BYTES = 2**28
_HASHED = 2**17  # bytes of tokens that go to a digest at once


@dataclass
class Progress:
    """How far an unfinished store is.

    Attributes:
        identity: of what is prepared, and how (Preparation.key).
        batches: of rows that are written, of the whole.
        accounts: what became of them, of each source.
        arrays: what is written; in the file each with the hash of its last block, full or not.
        names, largest: see Manifest.
        certain: files in which rows that are perhaps mojibake are.
        hashes: SHA-256 of the files that were read, by their paths.
    """

    identity: str
    batches: int = 0
    accounts: list[Account] = field(default_factory=list)
    arrays: dict[str, ArrayEntry] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    largest: int = 0
    certain: set[str] = field(default_factory=set)
    hashes: dict[str, str] = field(default_factory=dict)


class Damaged(Exception):
    """What an interrupted writing left is not what it has written."""


def read_progress(folder: Path, identity: str) -> Progress | None:
    """How far an interrupted writing of the same store came; None where there is none, or it was of something else."""
    try:
        content = json.loads(read_bounded(folder / PROGRESS, _MOST_BYTES).decode("utf-8", "surrogatepass"))
        progress = from_plain(Progress, content)
        there = all(file_of(folder, name).stat().st_size >= entry.bytes for name, entry in progress.arrays.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    whole = set(ARRAYS) <= set(progress.arrays) <= set(EVERY)
    return progress if there and progress.identity == identity and whole else None


class StoreWriter:
    """Writes the arrays of a store; a context manager.

    Args:
        folder: there already.
        progress: what is written so far; new arrays are made for one that has none.
        token_kind: of the tokens, `<u2` or `<u4`.
        objective: what is learnt from the documents.

    Raises:
        StorageError: the disk refuses. Damaged: the arrays that are there are not those of the progress.
    """

    def __init__(self, folder: Path, progress: Progress, token_kind: str, objective: str = "sft") -> None:
        self.progress, self._folder = progress, folder
        if not progress.arrays:
            wanted = {**ARRAYS, **FURTHER[objective]}
            progress.arrays = {name: ArrayEntry(kind or token_kind, width) for name, (kind, width) in wanted.items()}
        with storing(folder):
            written = {file_of(folder, name): entry for name, entry in progress.arrays.items() if entry.items}
            if not all(begins_with(path, entry) for path, entry in written.items()):
                raise Damaged
            self._digest = _digest_of_written(folder, progress)
            self._writers = {name: ArrayWriter(file_of(folder, name), item) for name, item in progress.arrays.items()}
        self._places = {name: place for place, name in enumerate(progress.names)}
        self._whole = False

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self._writers.values():
            with contextlib.suppress(OSError):
                writer.close(whole=False)

    def append(self, some: Documents) -> None:
        """Adds documents."""
        if not len(some.lengths):
            return
        arrays, entries = dict(some.arrays), self.progress.arrays
        for name in some.names:
            if name not in self._places:
                self._places[name] = len(self._places)
                self.progress.names.append(name)
        places = np.array([self._places[name] for name in some.names], dtype="<u4")
        arrays["files"] = places[some.files]
        arrays["ends"] = np.cumsum(arrays.pop("lengths")) + np.uint64(entries["tokens"].items)
        arrays["run_ends"] = np.cumsum(arrays.pop("run_counts")) + np.uint64(entries["runs"].items)
        self.progress.largest = max(self.progress.largest, int(some.tokens.max()))
        _add_to(self._digest, some)
        with storing(self._folder):
            for name, values in arrays.items():
                self._writers[name].append(values)

    def written(self, *names: str) -> list[NDArray[Any]]:
        """Some arrays as they are so far."""
        with storing(self._folder):
            for writer in self._writers.values():
                writer.sync()
            return [mapped(file_of(self._folder, name), self.progress.arrays[name]) for name in names]

    def commit(self) -> None:
        """Makes what is written so far durable: an interrupted writing goes on from here."""
        with storing(self._folder):
            for writer in self._writers.values():
                writer.sync()
            kept = [replace(item, problems=item.problems.without_excerpts()) for item in self.progress.accounts]
            arrays = {name: writer.reached() for name, writer in self._writers.items()}
            content = json.dumps(to_plain(replace(self.progress, accounts=kept, arrays=arrays)), ensure_ascii=False)
            write_in_place(self._folder / PROGRESS, content.encode("utf-8", "surrogatepass"))

    def finish(self, manifest: Manifest) -> None:
        """Completes the store: the manifest comes last, with arrays, names, documents, largest and digest as written."""
        with storing(self._folder):
            for writer in self._writers.values():
                writer.sync()
                writer.close(whole=True)
            manifest.arrays, manifest.names = self.progress.arrays, self.progress.names
            manifest.documents = self.progress.arrays["ends"].items
            manifest.largest, manifest.digest = self.progress.largest, self._digest.hexdigest()
            write_in_place(self._folder / MANIFEST, write_manifest(manifest))
            (self._folder / PROGRESS).unlink(missing_ok=True)
            fsync_folder(self._folder)


@contextlib.contextmanager
def storing(folder: Path) -> Iterator[None]:
    """Writes below a folder; what the disk refuses is the user's to solve.

    Raises:
        StorageError: in place of OSError.
    """
    try:
        yield
    except ToolkitError:  # some of them are OSErrors as well
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StorageError(
            f"{folder} に書けません（{reason}）。空き容量と権限を確認して、同じコマンドをもう一度実行してください（途中から続けます）。",
            f"{folder} cannot be written ({reason}); see that there is room and the right to write, and run the same command "
            "again: it goes on from where it was.",
        ) from None


def _add_to(digest: Any, some: Documents) -> None:
    """Adds documents to the digest of all (data.examples.digest_of)."""
    ids = np.ascontiguousarray(some.tokens, dtype="<i4")
    lengths = some.lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    begins = np.repeat((ends - lengths).astype(np.uint32), some.run_counts.astype(np.int64))
    labels = labels_of(ids, some.runs + begins[:, None]).astype("<i4", copy=False).data.cast("B")
    forks = some.forks.tolist() if some.forks is not None else [()] * len(lengths)
    marks = MARKS[some.marks].tolist() if some.marks is not None else [0] * len(lengths)
    tokens, parts, size = ids.data.cast("B"), [], 0
    for length, end, fork, mark in zip(lengths.tolist(), (4 * ends).tolist(), forks, marks, strict=True):
        start = end - 4 * length
        parts += [length.to_bytes(8, "little"), tokens[start:end], labels[start:end], further_of(fork, mark)]
        size += end - start
        if size >= _HASHED:  # in a few long parts: each takes Python's lock anew
            digest.update(b"".join(parts))
            parts, size = [], 0
    digest.update(b"".join(parts))


# Documents whose digest is computed at a time when a writing goes on.
_SOME = 4096


def _digest_of_written(folder: Path, progress: Progress) -> Any:
    """The digest of what is written already."""
    digest = hashlib.sha256()
    count = progress.arrays["ends"].items
    if not count:
        return digest
    arrays = {name: mapped(file_of(folder, name), entry) for name, entry in progress.arrays.items()}
    ends, run_ends = arrays["ends"], arrays["run_ends"]
    token = run = 0
    for start in range(0, count, _SOME):
        stop = min(count, start + _SOME)
        token_end, run_end = int(ends[stop - 1]), int(run_ends[stop - 1])
        own = {name: values[start:stop] for name, values in arrays.items() if name not in ("ends", "run_ends")}
        own |= {
            "tokens": arrays["tokens"][token:token_end],
            "runs": arrays["runs"][run:run_end],
            "lengths": np.diff(ends[start:stop], prepend=np.uint64(token)),
            "run_counts": np.diff(run_ends[start:stop], prepend=np.uint64(run)),
        }
        _add_to(digest, Documents(**own, names=[]))
        token, run = token_end, run_end
    return digest
