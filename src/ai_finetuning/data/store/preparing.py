"""From files to a store: every row is read once, encoded here or by workers, and written in its order."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

from ...config.data import DataConfig
from ...config.preference import Objective
from ...errors import localized
from ...messages import notice
from ...system.files import sha256_of
from ..bad_rows import BadRows
from ..cache import code_version, tokenizer_digest
from ..columns import check_columns
from ..contradictions import note_contradictions
from ..files import RowBatch, data_files, open_data
from ..pieces import Account, Group, Headless, PieceMaker, Reading, judge
from ..rows import reading
from ..sources import certain_mojibake, heading_of
from .documents import Documents, documents_of
from .mapped import FURTHER, JUDGED, PLAIN, Manifest, Part, Source
from .writer import Damaged, Progress, StoreWriter, read_progress

# Tokens between two moments from which an interrupted preparation goes on: some ten seconds.
_COMMIT = 2**23
# Bytes of files that are many characters (tokenize.Segmenter), compressed or not.
_MANY = 2**21
# Settings of `data` that decide nothing of tokens and labels, or whose data is prepared by itself.
_ELSEWHERE = ("train", "eval", "replay", "packing", "group_by_length", "cache", "streaming")

Encoded = tuple[Documents, Account]


class Encoder(Protocol):
    """Encodes batches of rows, here or in other processes."""

    ahead: int  # batches that it takes before the first is done

    def submit(self, batch: RowBatch, heading: Sequence[str] | None, limit: int | None) -> Future[Encoded]:
        """The documents of a batch and what became of its rows; Headless where the heading is needed."""
        ...

    def close(self) -> None:
        """Ends what it has started."""
        ...


class Here:
    """Encodes in this process, when it is asked."""

    ahead = 0

    def __init__(self, tokenizer: Any, reading: Reading, *, many: bool = False) -> None:
        self._maker = PieceMaker(tokenizer, reading, many=many)

    def submit(self, batch: RowBatch, heading: Sequence[str] | None, limit: int | None) -> Future[Encoded]:
        """See Encoder."""
        done: Future[Encoded] = Future()
        try:
            examples, account = self._maker.make(batch, heading, limit)
            done.set_result((documents_of(examples), account))
        except Exception as error:
            done.set_exception(error)
        return done

    def close(self) -> None:
        """Nothing was started."""


@dataclass(frozen=True)
class Preparation:
    """What is to be prepared.

    Attributes:
        paths: files, folders or hub ids, as the user gave them.
        config: how rows become tokens.
        tokenizer: with pad token and chat template.
        sources: the files; one without a hash gets it while it is read.
        objective: what is learnt from them.
    """

    paths: tuple[str, ...]
    config: DataConfig
    tokenizer: Any
    sources: tuple[Source, ...]
    objective: Objective = "sft"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that decide tokens and labels."""
        return settings_of(self.config, self.objective)

    @property
    def identity(self) -> str:
        """A digest of everything that decides what is written. Files without a hash are read."""
        return self._identity_with(
            [item if item.sha256 else replace(item, sha256=sha256_of(Path(item.path))) for item in self.sources]
        )

    @property
    def key(self) -> str:
        """The same as far as it is known before the files are read: their hashes are not in it."""
        return self._identity_with([replace(item, sha256="") for item in self.sources])

    def _identity_with(self, sources: list[Source]) -> str:
        return _identity(code_version(), tokenizer_digest(self.tokenizer), self.settings, list(self.paths), sources)


def identity_of(manifest: Manifest) -> str:
    """The identity of what was prepared."""
    return _identity(manifest.code, manifest.tokenizer, manifest.settings, manifest.paths, manifest.sources)


def _identity(code: str, tokenizer: str, settings: dict[str, Any], paths: list[str], sources: list[Source]) -> str:
    parts = [PLAIN, code, tokenizer, settings, paths, [asdict(item) for item in sources]]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def settings_of(config: DataConfig, objective: Objective = "sft") -> dict[str, Any]:
    """The settings that decide tokens and labels, each by its whole name, such as `normalize.newlines`; with the objective
    where it is none of supervised training, which had no name for it.
    """
    settings = {name: value for name, value in asdict(config).items() if name not in _ELSEWHERE}
    flat = {name: value for name, value in settings.items() if not isinstance(value, dict)}
    for name, inner in settings.items():
        if isinstance(inner, dict):
            flat |= {f"{name}.{key}": value for key, value in inner.items()}
    return flat if objective == "sft" else {**flat, "objective": objective}


def sources_of(paths: Sequence[str], *, hashed: bool = True) -> tuple[Source, ...]:
    """The files that some paths name. A data set of the hub has none.

    Args:
        hashed: with their hashes, for which all of them are read.

    Raises:
        InputNotFoundError, DataError: see files.find_data.
    """
    obtained: list[Source] = []
    for path in paths:
        with reading(path):
            obtained += [
                Source(str(file), file.stat().st_size, sha256_of(file) if hashed else "") for file in data_files(path)
            ]
    return tuple(obtained)


class Changed(Exception):
    """A file is not what it was when the preparation began that is to go on."""


class _Restart(Exception):
    """Files turned out to be mojibake: what was written of them is to be written anew, without their doubtful rows."""

    def __init__(self, certain: set[str]) -> None:
        super().__init__()
        self.certain = certain


def prepare_store(
    asked: Preparation,
    folder: Path,
    *,
    encoder: Callable[[Reading], Encoder] | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes the store of some data into a folder that is there. One that was interrupted before goes on.

    Args:
        encoder: makes what encodes the rows; None encodes them in this process.
        on_bytes: called after each batch, with how many bytes of the files are read.

    Raises:
        DataError: data that cannot be trained on; InputNotFoundError, HubError: no such data; StorageError: the disk
            refuses. Changed: a file without a hash is another than the interrupted preparation has read.
    """
    key = asked.key
    progress = read_progress(folder, key) or Progress(key)
    while True:
        try:
            reading = Reading.of(asked.config, progress.certain, asked.objective)
            with StoreWriter(folder, progress, _token_kind(asked.tokenizer), asked.objective) as writer:
                own: Encoder = (
                    Here(asked.tokenizer, reading, many=sum(item.bytes for item in asked.sources) >= _MANY)
                    if encoder is None or _counts_rows(asked)
                    else encoder(reading)
                )
                with closing(own):
                    manifest = _Run(asked, writer, own, on_bytes).manifest()
                writer.finish(manifest)
            return
        except _Restart as restart:
            progress = Progress(key, certain=progress.certain | restart.certain)
        except Damaged:
            notice(
                f"{folder} にある途中の結果が壊れているので、最初から用意します。",
                f"what an interrupted preparation left in {folder} is damaged; it begins anew.",
            )
            progress = Progress(key)


def _token_kind(tokenizer: Any) -> str:
    return "<u2" if max(tokenizer.get_vocab().values(), default=0) < 2**16 else "<u4"


def _counts_rows(asked: Preparation) -> bool:
    """Whether a batch can be encoded only when those before it are: the first rows of a source are taken."""
    return asked.config.max_samples is not None


class _Run:
    """One pass over the data."""

    def __init__(
        self, asked: Preparation, writer: StoreWriter, encoder: Encoder, on_bytes: Callable[[int], None]
    ) -> None:
        self._asked, self._writer, self._encoder, self._on_bytes = asked, writer, encoder, on_bytes
        self._done = writer.progress.batches
        self._number = self._uncommitted = 0
        self._heading: list[str] | None = None
        self._read: list[Group] = []
        self._positions: dict[str, int] = {}  # bytes that are read, of each file
        self._hashes = {item.path: item.sha256 for item in asked.sources}  # empty where it is not known yet

    def manifest(self) -> Manifest:
        """Writes all documents; what the manifest says of them.

        Raises:
            DataError: see prepare_store.
        """
        asked = self._asked
        for path in asked.paths:
            self._read_one(path)
        parts = [[group] for group in self._read] if asked.config.max_samples is not None else [self._read]
        accounts = [_together(part) for part in parts]
        certain = {file for part in accounts for file in certain_mojibake(part.samples, part.likely)}
        if certain - self._writer.progress.certain:
            raise _Restart(certain)
        report, bad = judge(parts, asked.config.skip_bad_rows)
        if asked.objective != "sft":
            kept = ("files", "numbers", "contents", *FURTHER[asked.objective])
            written = dict(zip(kept, self._writer.written(*kept), strict=True))
            note_contradictions(report, written, self._writer.progress.names)
        said = []
        for part, account in zip(parts, accounts, strict=True):
            data = replace(account.data, shared=True, files=[group.report for group in part])
            said.append(Part(data, max(0, data.samples - (asked.config.max_samples or data.samples))))
        return Manifest(
            version=PLAIN if asked.objective == "sft" else JUDGED,
            tokenizer=tokenizer_digest(asked.tokenizer),
            code=code_version(),
            settings=asked.settings,
            paths=list(asked.paths),
            sources=[replace(item, sha256=self._hash_of(item.path)) for item in asked.sources],
            documents=0,
            largest=0,
            digest="",
            parts=said,
            bad=bad.without_excerpts(),
            report=report,
            names=[],
        )

    def _read_one(self, path: str) -> None:
        """Writes the documents of a file, a folder or a data set.

        Raises:
            DataError: it holds no row, or none with a format.
        """
        accounts, config = self._writer.progress.accounts, self._asked.config
        if len(accounts) == len(self._read):
            accounts.append(Account())
        bad = BadRows()
        hashed = not all(self._hashes.values())
        report, batches = open_data(path, bad, columns=config.columns, sheet=config.sheet, hashed=hashed)
        group = Group(report, accounts[len(self._read)], bad)
        self._read.append(group)
        self._heading = None
        waiting: deque[tuple[RowBatch, Future[Encoded]]] = deque()
        for batch in batches:
            self._number += 1
            self._hash_of(str(batch.file.path), batch.file.content.sha256)
            self._positions[batch.file.report.path] = batch.file.content.position()
            if self._number <= self._done:
                continue
            waiting.append((batch, self._submit(batch, group.account)))
            while len(waiting) > self._encoder.ahead:
                self._write(*waiting.popleft(), group.account, path)
        while waiting:
            self._write(*waiting.popleft(), group.account, path)
        report.rows = group.account.rows
        if not report.rows and not any(item.unread for item in self._read):
            raise BadRows().empty(path)
        if report.rows:
            check_columns(config.columns, list(group.account.columns))

    def _hash_of(self, path: str, sha256: Callable[[], str] | None = None) -> str:
        """The hash of a source, known before the first of its rows is written.

        Args:
            sha256: gives what its reader came to; else the file is read for it.

        Raises:
            Changed: it had another one before the preparation was interrupted.
        """
        if self._hashes.get(path) == "":
            with reading(path):
                found = sha256() if sha256 is not None else sha256_of(Path(path))
            if self._writer.progress.hashes.setdefault(path, found) != found:
                raise Changed
            self._hashes[path] = found
        return self._hashes.get(path, "")

    def _submit(self, batch: RowBatch, account: Account) -> Future[Encoded]:
        most = self._asked.config.max_samples
        limit = None if most is None else max(0, most - account.data.samples)
        return self._encoder.submit(batch, self._heading, limit)

    def _write(self, batch: RowBatch, encoded: Future[Encoded], account: Account, path: str) -> None:
        try:
            documents, piece = encoded.result()
        except Headless:
            if self._heading is None:
                self._heading = self._find_heading(path)
            documents, piece = self._submit(batch, account).result()
        self._writer.append(documents)
        account.merge(piece)
        self._writer.progress.batches += 1
        self._uncommitted += len(documents.tokens)
        if self._uncommitted >= _COMMIT:
            self._writer.commit()
            self._uncommitted = 0
        self._on_bytes(sum(self._positions.values()))

    def _find_heading(self, path: str) -> list[str]:
        """Reads from the beginning, until a row has a format."""
        config = self._asked.config
        _, batches = open_data(path, BadRows(True), columns=config.columns, sheet=config.sheet)
        rows = (row for batch in batches for row in batch.rows())
        return heading_of(rows, config.columns, self._asked.objective)


def _together(part: Sequence[Group]) -> Account:
    whole = Account()
    for group in part:
        whole.merge(group.account)
    return whole


def lines_of(manifest: Manifest, max_samples: int | None) -> list[str]:
    """What is said of the data of a store, in the locale's language."""
    lines: list[str] = []
    for part in manifest.parts:
        lines += part.data.lines() + left_aside(part.left, max_samples)
    return lines + manifest.bad.lines() + manifest.report.lines()


def left_aside(left: int, max_samples: int | None) -> list[str]:
    """The line that says how many rows of a source `max_samples`, of `data` or of an entry, leaves aside; none where there
    are none.
    """
    if left < 1 or max_samples is None:
        return []
    return [
        localized(
            f"max_samples が {max_samples} なので、先頭の {max_samples} 行だけを使います（使わない行: {left}）",
            f"max_samples is {max_samples}: the first {max_samples} rows are used, {left} rows left aside",
        )
    ]
