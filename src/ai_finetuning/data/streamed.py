"""Rows that are read and encoded as they are trained (`data.streaming`, docs/scale.md): nothing is prepared or counted.

A pass over the files is a row of pieces. What a piece becomes depends on the files, the settings and its number alone,
so that a run goes on from the number of a piece and a row in it, without encoding what lies before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.data import DataConfig
from ..errors import DataError, Reason, localized
from ..messages import notice, on_one_line
from .bad_rows import BadRows
from .cache import tokenizer_digest
from .columns import check_columns
from .data_report import DataReport
from .encode_report import EncodeReport
from .example import Example
from .files import RowBatch, check_rows_there, data_files, open_data
from .pieces import Account, Headless, PieceMaker, Problems, Reading
from .rows import FileReport, reading
from .sources import certain_mojibake, heading_of, refuse_half_marked
from .store.preparing import settings_of
from .tokenize import check_encoded

# Settings that decide nothing of the rows before the first bad one, where a run may have stopped.
_NOT_OF_THE_ROWS = ("skip_bad_rows",)
# Bytes of a file that are compared at each of four places, from the first to the last.
_COMPARED = 2**16
_MENDED = Reason(
    "\n直したファイルは別のデータとみなされます。直して再開するときは training.checkpoint.allow_changed=true を付けてください。",
    "\nA file that is mended is other data to a run that has begun: go on with training.checkpoint.allow_changed=true.",
)


@dataclass(frozen=True, eq=False)
class Piece:
    """Some rows of the data, encoded.

    Attributes:
        examples: what its rows became; none where all were left out.
        account: what became of them.
    """

    examples: Sequence[Example]
    account: Account


@dataclass(frozen=True)
class _Part:
    """Rows of a path that are not encoded yet.

    Attributes:
        batch: the rows; None behind the last ones.
        unread: rows before them, or among them, that the reader refused.
        begins: whether they are the first ones of the path.
    """

    path: str
    batch: RowBatch | None
    unread: BadRows
    begins: bool = False


class RowStream:
    """Files as pieces, from any piece on.

    Args:
        paths: files, folders or hub ids, in order.
        tokenizer: with pad token and chat template.
        config: how rows become tokens.
    """

    def __init__(self, paths: Sequence[str], tokenizer: Any, config: DataConfig) -> None:
        self._paths, self._tokenizer, self._config = tuple(paths), tokenizer, config
        self._reading = Reading.of(config)
        self._told: set[tuple[str, str]] = set()
        self._begun: list[list[Any]] = []  # the marks of the files when the digest was made

    @property
    def max_length(self) -> int:
        """Tokens that no row exceeds."""
        return self._config.max_length

    def digest(self) -> str:
        """What tells this data from other data: the sizes of its files and some bytes of each, settings and tokenizer. A
        file that has changed elsewhere is not told.
        """
        settings = {name: value for name, value in settings_of(self._config).items() if name not in _NOT_OF_THE_ROWS}
        self._begun = self._marks()
        files = [mark for _, *mark in self._begun]
        names = [path for path in self._paths if not data_files(path)]  # of the hub
        parts = [settings, tokenizer_digest(self._tokenizer), files, names]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _marks(self) -> list[list[Any]]:
        """[name, size, digest of four places] of each file."""
        obtained: list[list[Any]] = []
        for path in self._paths:
            with reading(path):
                obtained += [[str(file), *_mark_of(file)] for file in data_files(path)]
        return obtained

    def _check_unchanged(self) -> None:
        """Compares the files with what they were when the digest was made, before they are read once more.

        Raises:
            DataError: others. InputNotFoundError: one is not there.
        """
        marks = self._marks()
        if not self._begun or marks == self._begun:
            return
        other = next(name for name, *_ in [*marks, *self._begun] if _named(name, marks) != _named(name, self._begun))
        raise DataError(
            f"学習データのファイルが、この実行を始めてから変わりました（{other}）。元に戻してから再開するか、変わったデータで続けるなら training.checkpoint.allow_changed=true "
            "を付けて再開してください。",
            f"the files of the training data have changed since this run began ({other}); put them back and resume, or, to go on "
            "with the changed data, resume with training.checkpoint.allow_changed=true.",
        )

    def pieces(self, first: int = 0, before: Account | None = None, *, again: bool = False) -> Iterator[Piece]:
        """The pieces of a pass.

        Args:
            first: the number of the first one; those before it are read, and not encoded.
            before: what became of their rows.
            again: whether an earlier pass has read them.

        Raises:
            DataError: bad rows that are not to be left out, of a piece all together, with file and line; nothing to
                train on; files that have changed since an earlier pass. InputNotFoundError, HubError: no such data.
        """
        if again:
            self._check_unchanged()
        maker = PieceMaker(self._tokenizer, self._reading, many=True)
        marks = DataReport()
        if before is not None:
            marks.marked.update(before.data.marked)
            marks.unmarked.update(before.data.unmarked)
        encoded, left = EncodeReport(), BadRows(True)
        for number, part in enumerate(self._parts()):
            if number < first:
                continue
            examples, account = ([], Account()) if part.batch is None else self._made(maker, part)
            piece = self._judged(Piece(examples, account), part.unread, marks, begun=number > 0)
            encoded.merge(account.encoded)
            left.merge(_bad_of(account))
            yield piece
        if not encoded.rows and not first:
            check_encoded(encoded, left)

    def _parts(self) -> Iterator[_Part]:
        for path in self._paths:
            bad = BadRows()
            begins = True
            report, batches = self._opened(path, bad)
            for batch in batches:
                self._tell(report)
                yield _Part(path, batch, _taken(bad), begins=begins)
                begins = False
            self._tell(report)
            unread = _taken(bad)
            if len(unread):
                yield _Part(path, None, unread)
            elif begins:
                raise BadRows().empty(path)

    def _opened(self, path: str, bad: BadRows) -> tuple[FileReport, Iterator[RowBatch]]:
        config = self._config
        return open_data(path, bad, columns=config.columns, sheet=config.sheet, beginning=True)

    def _tell(self, report: FileReport) -> None:
        """Says once what a reader has noted, such as a file that it leaves aside."""
        for note in report.notes:
            ja, en = (on_one_line(f"{report.path}: {text}") for text in note)
            if (ja, en) not in self._told:
                self._told.add((ja, en))
                notice(ja, en)

    def look(self) -> tuple[Sequence[Example], Account]:
        """The first piece that has rows to train on, and what became of the rows up to there.

        Raises:
            DataError: see pieces(); a cut that leaves too little of them.
        """
        for path in self._paths:
            check_rows_there(path)
        whole = Account()
        for piece in self.pieces():
            whole.merge(piece.account)
            if piece.examples:
                check_encoded(whole.encoded, BadRows(True))
                return piece.examples, whole
        raise AssertionError("pieces() refuses data without a row")

    def _made(self, maker: PieceMaker, part: _Part) -> tuple[list[Example], Account]:
        made = self._with_heading(maker, part)
        if part.begins and self._config.columns:  # whether a column is anywhere is told by the first rows
            check_columns(self._config.columns, list(made[1].columns))
        # Nobody knows all rows of a file: a piece that is mojibake by itself is refused.
        certain = certain_mojibake(made[1].samples, made[1].likely)
        if certain:
            reading = replace(self._reading, certain=certain)
            made = self._with_heading(PieceMaker(self._tokenizer, reading), part)
        return made

    def _with_heading(self, maker: PieceMaker, part: _Part) -> tuple[list[Example], Account]:
        assert part.batch is not None
        try:
            return maker.make(part.batch, None)
        except Headless:
            rows = (row for batch in self._opened(part.path, BadRows(True))[1] for row in batch.rows())
            return maker.make(part.batch, heading_of(rows, self._config.columns))

    def _judged(self, piece: Piece, unread: BadRows, marks: DataReport, *, begun: bool) -> Piece:
        """The piece, where it may be trained on."""
        account = piece.account
        unread.merge(account.problems.read)
        account.problems.read = unread
        found = _bad_of(account)
        found.skip = self._config.skip_bad_rows
        try:
            found.refuse()
        except DataError as error:
            if not begun:
                raise
            # A run that has begun with these files takes a file of another size for other data.
            written = error.for_files
            raise DataError(
                error.ja + _MENDED.ja, error.en + _MENDED.en, Reason(written.ja + _MENDED.ja, written.en + _MENDED.en)
            ) from None
        marks.marked.update(account.data.marked)
        marks.unmarked.update(account.data.unmarked)
        refuse_half_marked(marks)
        return piece


def _taken(bad: BadRows) -> BadRows:
    """What a reader has noted since it was asked last."""
    obtained = BadRows()
    obtained.merge(bad)
    bad.counts.clear()
    bad.places.clear()
    return obtained


def _bad_of(account: Account) -> BadRows:
    bad = BadRows()
    problems: Problems = account.problems
    for stage in (problems.read, problems.shaped, problems.cleaned, problems.likely, problems.encoded):
        bad.merge(stage)
    return bad


def _named(name: str, marks: Sequence[Sequence[Any]]) -> Any:
    return next((mark for mark in marks if mark[0] == name), None)


def _mark_of(file: Path) -> list[Any]:
    """The size of a file, and a digest of four places of it."""
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for part in range(4):
            stream.seek(max(0, size - _COMPARED) * part // 3)
            digest.update(stream.read(_COMPARED))
    return [size, digest.hexdigest()]


def report_of(account: Account) -> EncodeReport:
    """What is reported of rows that were read."""
    bad = _bad_of(account)
    return replace(
        account.encoded,
        left_out=len(bad),
        left_out_reasons=[[ja, en, count] for (ja, en), count in bad.counts.most_common()],
        vocabulary=account.lost.loss(),
        system=account.systems[0] or None if len(account.systems) == 1 else None,
    )


def lines_of_look(account: Account) -> list[str]:
    """What is said of streamed data before the first step, by what look() gave, in the locale's language."""
    head = localized(
        f"ストリーミング: 行をファイルの順に読みながら学習します。全体の行数は数えません。次は先頭の {account.rows:,} 行についてです",
        f"streaming: rows are trained in the order of the files as they are read, and not counted; what follows is of the "
        f"first {account.rows:,} rows",
    )
    return [head, *account.data.lines(), *_bad_of(account).lines(), *report_of(account).lines()]


class Ahead:
    """Pieces one after another; the next one is made by a thread while this one is used."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._thread = ThreadPoolExecutor(1, "pieces")
        self._next: Future[Piece | None] = self._thread.submit(next, pieces, None)

    def take(self) -> Piece | None:
        """The next piece; None behind the last one. What went wrong is raised as often as it is asked for."""
        piece = self._next.result()
        if piece is not None:
            self._next = self._thread.submit(next, self._pieces, None)
        return piece

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Place:
    """Where a row stands in a pass.

    Attributes:
        pieces: before the one that it is in.
        rows: of that piece before it.
        source: its name; empty where a pass begins.
    """

    pieces: int = 0
    rows: int = 0
    source: str = ""

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Place:
        """Out of a checkpoint.

        Raises:
            KeyError, ValueError: no place.
        """
        place = cls(plain["pieces"], plain["rows"], plain["next"])
        whole = all(isinstance(item, int) and 0 <= item < 2**53 for item in (place.pieces, place.rows))
        if not whole or not isinstance(place.source, str):
            raise ValueError(str(plain)[:100])
        return place


def changed(place: Place) -> DataError:
    """The refusal to go on where the row does not stand."""
    row = place.source or localized("次の行", "the next one")
    return DataError(
        f"学習を続ける行（{row}）が、同じ場所にありません。学習データのファイルが変わっています。元に戻すか、最初から始めてください（--restart）。",
        f"the row to go on from, {row}, is not where it was: the files of the training data have changed. Put them back, or "
        "start anew (--restart).",
    )
