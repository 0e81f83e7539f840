"""What is known of training data without a tokenizer, from the beginning of a large file: for first figures."""

from __future__ import annotations

import codecs
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from ..config.preference import Objective
from ..embedded import is_embedded
from ..errors import DataError
from .bad_rows import BadRows
from .encoding import find_first_encoding
from .messages import Comparison, Conversation, Judged, Message, PlainText, Sample
from .sources import RowReading, read_source

# Bytes of a file that are read; of a longer one its beginning tells of the rest, where its rows stand on lines.
_MOST = 2 << 20
_LINES = (".csv", ".tsv", ".jsonl", ".txt")


@dataclass(frozen=True)
class Glance:
    """Data at a glance.

    Attributes:
        rows: (how many can be used, characters of all of them, of the longest); None of a large file that only a whole
            reading tells.
        bad: rows that cannot be used, among those that were read.
        objective: what such rows teach: sft, preference (pairs) or kto (marks).
        read_whole: whether all of it was read.
    """

    rows: tuple[int, int, int] | None
    bad: int
    objective: str
    read_whole: bool = True


def glance(source: str, columns: Mapping[str, str] | None = None, sheet: str | None = None) -> Glance:
    """Looks at a file, or at data that ships with the package.

    Args:
        columns, sheet: as in the settings of data.

    Raises:
        InputNotFoundError: it is not there. DataError: no row of it can be used.
    """
    path = Path(source)
    size = 0 if is_embedded(source) or not path.is_file() else path.stat().st_size
    if size <= _MOST:
        return _read(path if size else source, columns, sheet)
    if path.suffix.lower() not in _LINES:
        return Glance(None, 0, "sft", read_whole=False)
    text, more = _beginning(path, size)
    with tempfile.TemporaryDirectory(prefix="aift-glance-") as folder:
        beginning = Path(folder) / path.name
        beginning.write_text(text, encoding="utf-8", newline="", errors="surrogateescape")
        try:
            found = _read(beginning, columns, sheet)
        except DataError as error:  # of the file that was named, not of the copy
            copy, named = str(beginning), str(path)
            raise DataError(error.ja.replace(copy, named), error.en.replace(copy, named)) from error
    assert found.rows is not None
    count, characters, longest = found.rows
    return Glance(
        (round(count * more), round(characters * more), longest), found.bad, found.objective, read_whole=False
    )


def _beginning(path: Path, size: int) -> tuple[str, float]:
    """(whole lines of a file's beginning, how many times as long the file is).

    Raises:
        DataError: no encoding that is known.
    """
    encoding, errors = find_first_encoding(lambda: path.open("rb"), path.name)
    with path.open("rb") as stream:
        head = stream.read(_MOST)
    text = codecs.getincrementaldecoder(encoding)(errors).decode(head)
    end = last = text.rfind("\n") + 1
    # Where a cell has several lines, the last row must not end inside of it.
    inside = path.suffix.lower() in (".csv", ".tsv") and text.count('"', 0, end) % 2
    while inside and end:
        start = text.rfind("\n", 0, end - 1) + 1
        inside, end = (inside + text.count('"', start, end)) % 2, start
    whole = text[: end or last]
    return whole, size / max(1, len(whole.encode(encoding, errors)))


def _read(source: Path | str, columns: Mapping[str, str] | None, sheet: str | None) -> Glance:
    """By the first objective of which rows are, in the order of the settings."""
    refused: DataError | None = None
    for objective in get_args(Objective):
        bad = BadRows(True)
        how = RowReading(dict(columns or {}) or None, objective=objective, sheet=sheet)
        try:
            samples, _ = read_source(source, how, bad, shared=True)
        except DataError as error:
            refused = refused or error
            continue
        lengths = [_characters(sample) for sample in samples]
        return Glance((len(samples), sum(lengths), max(lengths, default=0)), len(bad), objective)
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
