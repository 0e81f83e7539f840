"""What is known of training data without a tokenizer, from the beginning of a large file: for first figures. No torch."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ...config.preference import Objective
from ...data.bad_rows import BadRows
from ...data.messages import Comparison, Conversation, Judged, Message, PlainText, Sample
from ...data.sources import RowReading, read_source
from ...embedded import is_embedded
from ...errors import DataError
from ...planner.rough import Rows

# Bytes of a file that are read; of a longer one its beginning tells of the rest, where its rows stand on lines.
_MOST = 2 << 20
_LINES = (".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class Facts:
    """Data at a glance.

    Attributes:
        rows: how many can be used, and their characters; None of a large file that only a whole reading tells.
        bad: rows that cannot be used, among those that were read.
        objective: what such rows teach: sft, preference (pairs) or kto (marks).
        read_whole: whether all of it was read.
    """

    rows: Rows | None
    bad: int
    objective: str
    read_whole: bool = True


def facts_of(source: str, columns: Mapping[str, str] | None = None, sheet: str | None = None) -> Facts:
    """The facts of a file, or of data that ships with the package; read once as long as the file stays the same.

    Raises:
        DataError: no row of it can be used.
    """
    stamp = (0, 0)
    if not is_embedded(source):
        status = Path(source).stat()
        stamp = (status.st_size, status.st_mtime_ns)
    return _facts(source, tuple(sorted((columns or {}).items())), sheet, stamp)


@functools.lru_cache(maxsize=32)
def _facts(source: str, columns: tuple[tuple[str, str], ...], sheet: str | None, stamp: tuple[int, int]) -> Facts:
    size, path = stamp[0], Path(source)
    if size <= _MOST:
        return _read(path if size else source, dict(columns), sheet)
    if path.suffix.lower() not in _LINES:
        return Facts(None, 0, "sft", read_whole=False)
    with tempfile.TemporaryDirectory(prefix="aift-web-") as folder, path.open("rb") as stream:
        head = stream.read(_MOST)
        beginning = Path(folder) / path.name
        whole = head[: head.rfind(b"\n") + 1]
        beginning.write_bytes(whole)
        found = _read(beginning, dict(columns), sheet)
    if found.rows is None:
        return found
    more = size / max(1, len(whole))
    rows = Rows(round(found.rows.count * more), round(found.rows.characters * more), found.rows.longest)
    return Facts(rows, found.bad, found.objective, read_whole=False)


def _read(source: Path | str, columns: dict[str, str], sheet: str | None) -> Facts:
    """By the first objective of which rows are, in the order of the settings."""
    refused: DataError | None = None
    for objective in get_args(Objective):
        bad = BadRows(True)
        how = RowReading(columns or None, objective=objective, sheet=sheet)
        try:
            samples, _ = read_source(source, how, bad, shared=True)
        except DataError as error:
            refused = refused or error
            continue
        lengths = [_characters(sample) for sample in samples]
        return Facts(Rows(len(samples), sum(lengths), max(lengths, default=0)), len(bad), objective)
    assert refused is not None
    raise refused


def _characters(sample: Sample) -> int:
    """Of a row; of a pair of its longer answer with the question."""
    if isinstance(sample, PlainText):
        return len(sample.text)
    if isinstance(sample, Comparison):
        return _of(sample.prompt) + max(_of(sample.chosen), _of(sample.rejected))
    conversation: Conversation = sample.conversation if isinstance(sample, Judged) else sample
    return _of(conversation.messages)


def _of(messages: Sequence[Message]) -> int:
    return sum(len(message.content) + len(message.input) for message in messages)
