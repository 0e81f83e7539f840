"""Examples as arrays: what a worker hands over and a store appends."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...labels import IGNORED
from ..example import Example
from ..forks import CHOSEN, REJECTED, side_of

_PLACE = re.compile(r"(?::(\d+)|\[(\d+)\])\Z")


@dataclass
class Documents:
    """Some documents, one behind another.

    Attributes:
        tokens: [tokens] int32, of all of them.
        lengths: [documents] uint64.
        runs: [runs, 2] uint32, where label tokens begin and end, counted from their document's first token.
        run_counts: [documents] uint64.
        characters, learnt: [documents] uint32, characters and number of its label tokens.
        names: of files, or what else names rows.
        forks: [documents, 3] uint32, of pairs of answers (Example.fork); None for other documents.
        sides: [documents, 2] uint64, of pairs the digests of the whole chosen and rejected conversations.
        marks: [documents] uint16, of judged answers 1 for good and 2 for bad; None for other documents.
        files: [documents] uint32, of each its place in `names`.
        numbers: [documents] int64, its line; negative where it is an item, 0 where the name says it all.
        questions: [documents] uint64, the digest of its question; 0 for none.
        contents: [documents, 2] uint64, a digest of its tokens: equal for equal documents.
    """

    tokens: NDArray[Any]
    lengths: NDArray[Any]
    runs: NDArray[Any]
    run_counts: NDArray[Any]
    characters: NDArray[Any]
    learnt: NDArray[Any]
    files: NDArray[Any]
    numbers: NDArray[Any]
    questions: NDArray[Any]
    contents: NDArray[Any]
    names: list[str]
    forks: NDArray[Any] | None = None
    sides: NDArray[Any] | None = None
    marks: NDArray[Any] | None = None

    @property
    def arrays(self) -> list[tuple[str, NDArray[Any]]]:
        """The arrays with their names."""
        own = ((item.name, getattr(self, item.name)) for item in fields(self) if item.name != "names")
        return [(name, values) for name, values in own if values is not None]


def digest_of_tokens(ids: NDArray[np.int32]) -> bytes:
    """16 bytes that are equal for equal documents and for no others."""
    return hashlib.blake2b(np.ascontiguousarray(ids, dtype="<i4").data, digest_size=16).digest()


def content_of(example: Example) -> bytes:
    """The digest of a row's tokens; of a pair with where it forks, of a judged answer without its mark."""
    if not example.fork:
        return digest_of_tokens(example.input_ids)
    return digest_of_tokens(np.concatenate([example.input_ids, np.array(example.fork, dtype=np.int32)]))


def further_of(fork: Sequence[int], mark: int) -> bytes:
    """What a pair or a judged answer adds to the digest of all rows; nothing of other rows."""
    return b"".join(
        (b"fork" + np.array(fork, "<i8").tobytes() if len(fork) else b"", b"mark%d" % mark if mark else b"")
    )


def _sides_of(example: Example) -> list[int]:
    whole = (digest_of_tokens(side_of(example, side).input_ids) for side in (CHOSEN, REJECTED))
    return [int.from_bytes(digest[:8], "little") for digest in whole]


def documents_of(examples: Sequence[Example]) -> Documents:
    """Examples as arrays."""
    lengths = np.array([len(item) for item in examples], dtype="<u8")
    starts = np.cumsum(lengths) - lengths
    nothing = [np.zeros(0, dtype=np.int32)]
    labels = np.concatenate([item.labels for item in examples] or nothing) != IGNORED
    edges = np.flatnonzero(np.diff(labels, prepend=False, append=False)).reshape(-1, 2)
    # The first token of a document is no label token, so that no run crosses a border.
    owner = np.searchsorted(starts, edges[:, 0], side="right") - 1 if len(edges) else np.zeros(0, dtype=np.int64)
    names: dict[str, int] = {}
    files, numbers = [], []
    pairs = any(item.fork for item in examples)
    judged = any(item.mark for item in examples)
    last, name, number = "", *parted("")
    for item in examples:
        if item.source != last:  # a text in several rows has one place
            last, (name, number) = item.source, parted(item.source)
        files.append(names.setdefault(name, len(names)))
        numbers.append(number)
    return Documents(
        tokens=np.concatenate([item.input_ids for item in examples] or nothing),
        lengths=lengths,
        runs=(edges - starts[owner].astype(np.int64)[:, None]).astype("<u4"),
        run_counts=np.bincount(owner, minlength=len(examples)).astype("<u8"),
        characters=np.array([item.characters for item in examples], dtype="<u4"),
        learnt=np.bincount(owner, np.diff(edges)[:, 0], minlength=len(examples)).astype("<u4"),
        files=np.array(files, dtype="<u4"),
        numbers=np.array(numbers, dtype="<i8"),
        questions=np.array([int(item.question or "0", 16) for item in examples], dtype="<u8"),
        contents=np.frombuffer(b"".join(map(content_of, examples)), "<u8").reshape(-1, 2),
        names=list(names),
        forks=np.array([item.fork for item in examples], dtype="<u4") if pairs else None,
        sides=np.array([_sides_of(item) for item in examples], dtype="<u8") if pairs else None,
        marks=np.array([item.mark % 3 for item in examples], dtype="<u2") if judged else None,
    )


def parted(source: str) -> tuple[str, int]:
    """(name, number) of where a row stood: `a.csv:12` is 12 of a.csv, `a.json[12]` is -12."""
    found = _PLACE.search(source)
    if found is None:
        return source, 0
    line, item = found.groups()
    number = int(line or item)
    name = source[: found.start()]
    if number >= 2**62 or joined(name, number if line else -number) != source:  # `:0` and `:007` are no numbers of ours
        return source, 0
    return name, number if line else -number


def joined(name: str, number: int) -> str:
    """The same as one text."""
    return f"{name}:{number}" if number > 0 else f"{name}[{-number}]" if number < 0 else name


def labels_of(ids: NDArray[np.int32], runs: NDArray[Any]) -> NDArray[np.int32]:
    """Labels [tokens] int32 of a document, from its runs of label tokens [runs, 2]."""
    labels = np.full(len(ids), IGNORED, dtype=np.int32)
    for start, stop in runs.tolist():
        labels[start:stop] = ids[start:stop]
    return labels
