"""The steps of a run over rows that are streamed: their order is that of the files, pass after pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from ..errors import Reason, ToolkitError
from ..messages import notice
from .answers import AnswerRows
from .collate import Batch, collate
from .encode_report import EncodeReport
from .example import Example
from .examples import largest_id
from .loader import dealt
from .pieces import Account
from .store.plain import from_plain, to_plain
from .streamed import Ahead, Piece, Place, RowStream, changed, report_of

# Steps of a pass whose end nobody has seen: more than any has.
UNKNOWN = 2**40
# Steps that can be asked for again: the one that is retried, and what is made ahead of it.
_KEPT = 4
_BEGINNING: dict[str, Any] = {"pieces": 0, "rows": 0, "next": "", "steps": None, "account": to_plain(Account())}

Step = tuple[int, int]  # a pass, and a step of it


class Check(Protocol):
    """Refuses rows that a model cannot take."""

    def __call__(self, *, max_token_id: int, max_length: int) -> None:
        """Takes the largest token id of a piece, and the tokens of its longest row."""
        ...


class Steps:
    """The rows of all ranks, step by step. A step that lies before those that are kept is read anew.

    Args:
        stream: the rows.
        rows_per_step: of all ranks.
        check: see StreamedLoader.

    Attributes:
        ends: how many steps a pass has, of those that were read to their end.
    """

    def __init__(self, stream: RowStream, rows_per_step: int, check: Check | None = None) -> None:
        self._stream, self._rows_per_step, self._check = stream, rows_per_step, check
        self.ends: dict[int, int] = {}
        self._ahead: Ahead | None = None
        self.go_to((0, 0), _BEGINNING)

    def go_to(self, step: Step, plain: Mapping[str, Any]) -> None:
        """Goes on with a step whose place is known.

        Args:
            plain: what place() gave, out of a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: no place.
        """
        place, account = Place.of(plain), from_plain(Account, plain["account"])
        steps = plain["steps"]
        if steps is not None:
            if not isinstance(steps, int) or not 0 < steps < UNKNOWN:
                raise ValueError(str(steps)[:40])
            self.ends[0] = steps
        self._stop()
        self._began = (step, dict(plain))
        self._step, self._expected, self._account = step, place, account
        self._piece: Piece | None = None
        self._behind, self._used = place.pieces, 0
        self._plain_account = plain["account"]
        self._made: dict[Step, list[Example]] = {}
        self._places = {step: dict(plain)}
        if step[1] and not place.source:  # what came next was refused when this was saved; there may be nothing else
            with contextlib.suppress(ToolkitError):  # it is told by the step that needs the rows
                if self._current() is None:
                    self._end(*step)
                    self._step = (step[0] + 1, 0)
                    self._places[self._step] = _BEGINNING | {
                        "steps": self.ends.get(0),
                        "account": self._plain_account,
                    }

    def rows(self, step: Step) -> list[Example]:
        """The rows of a step.

        Raises:
            DataError: see RowStream.pieces; the files are not what they were.
        """
        if step not in self._made and step < self._step:
            self.go_to(*(self._began if self._began[0] <= step else ((0, 0), _BEGINNING)))
        while step not in self._made:
            if self._step > step:
                raise changed(self._expected)
            self._make()
        return self._made[step]

    def place(self, step: Step) -> dict[str, Any]:
        """Where a step begins, as JSON: of the next one, or one of the last."""
        return self._places[step]

    def behind(self, count: int) -> Step:
        """The step that follows so many ones. All rows before it are read and encoded."""
        self.go_to((0, 0), _BEGINNING)
        while count:
            self._make()
            count -= 1
        return self._step

    def report(self) -> EncodeReport | None:
        """What became of the rows of the first pass that are used up; None where there are none."""
        account = from_plain(Account, self._plain_account)  # whole, also while a thread reads on
        return report_of(account) if account.encoded.rows else None

    @property
    def step(self) -> Step:
        """The next one to be made."""
        return self._step

    def _stop(self) -> None:
        if self._ahead is not None:
            self._ahead.close()
        self._ahead = None

    def _make(self) -> None:
        """Makes the next step, and looks whether it is the last one of its pass."""
        rows: list[Example] = []
        while len(rows) < self._rows_per_step and (piece := self._current()) is not None:
            taken = piece.examples[self._used : self._used + self._rows_per_step - len(rows)]
            rows += taken
            self._used += len(taken)
        if not rows:
            raise changed(self._expected)
        try:
            piece = self._current()
            last, source = piece is None, piece.examples[self._used].source if piece is not None else ""
        except ToolkitError:  # it is told by the step that needs the rows
            last, source = False, ""
        number, index = self._step
        self._made[self._step] = rows
        if last:
            self._end(number, index + 1)
        self._step = (number + 1, 0) if last else (number, index + 1)
        self._places[self._step] = {
            "pieces": self._behind,
            "rows": self._used,
            "next": source,
            "steps": self.ends.get(0),
            "account": self._plain_account,
        }
        for kept in (self._made, self._places):
            for step in list(kept)[:-_KEPT]:
                del kept[step]

    def _end(self, number: int, steps: int) -> None:
        if number == 0 and number not in self.ends:
            report = report_of(self._account)
            left = Reason(f"、読み飛ばした行: {report.left_out:,}", f", rows skipped: {report.left_out:,}")
            ja, en = (left.ja, left.en) if report.left_out else ("", "")
            notice(
                f"学習データを終わりまで読みました（{steps:,} ステップ、{report.rows:,} 行{ja}）。続くステップでは最初から読み直します。",
                f"the training data is read to its end ({steps:,} steps, {report.rows:,} rows{en}); steps that follow take it "
                "from the beginning again.",
            )
        self.ends[number] = steps
        self._stop()
        self._behind, self._used, self._expected = 0, 0, Place()

    def _current(self) -> Piece | None:
        """The piece with the next row; None behind the last one of the pass."""
        while self._piece is None or self._used == len(self._piece.examples):
            if self._piece is not None:
                self._retire(self._piece)
            if self._ahead is None:
                again = self._step[0] > 0
                self._ahead = Ahead(self._checked(self._stream.pieces(self._behind, self._account, again=again)))
            piece = self._ahead.take()
            if piece is None:
                if self._expected.source:
                    raise changed(self._expected)
                return None
            self._piece, self._used = piece, self._begin_in(piece)
        return self._piece

    def _checked(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces; one that the model cannot take is refused as often as it is asked for, never left out."""
        for piece in pieces:
            if piece.examples and self._check is not None:
                self._check(max_token_id=largest_id(piece.examples), max_length=max(map(len, piece.examples)))
            yield piece

    def _begin_in(self, piece: Piece) -> int:
        """Rows of a piece that were used before the run was interrupted.

        Raises:
            DataError: the row that came next is not there.
        """
        place = self._expected
        if not place.source:
            return 0
        there = piece.examples[place.rows].source if place.rows < len(piece.examples) else ""
        if Path(there).name != Path(place.source).name:  # the folder may be another one
            raise changed(place)  # which stays expected: whoever asks again is refused again, not given the next piece
        self._expected = Place()
        return place.rows

    def _retire(self, piece: Piece) -> None:
        self._behind += 1
        self._piece, self._used = None, 0
        if self._step[0] == 0:
            self._account.merge(piece.account)
            self._account.problems = self._account.problems.without_excerpts()
            self._plain_account = to_plain(self._account)


class StreamedLoader:
    """Batches of one rank. All ranks read and encode all rows, so that none waits for another, and each takes its own
    of every step.

    Args:
        stream: the rows.
        rows_per_step: rows of an optimizer step over all ranks.
        pad_token_id: what fills rows up.
        check: called for each piece before it is used; None takes all of them.

    Attributes:
        steps_made: the rows of all ranks.
    """

    def __init__(self, stream: RowStream, *, rows_per_step: int, pad_token_id: int, check: Check | None = None) -> None:
        self.answers: AnswerRows | None = None  # as Loader has them; streamed rows are not compared
        self.steps_made = Steps(stream, rows_per_step, check)
        self._pad_token_id = pad_token_id
        self._share = (0, 1)

    def of_rank(self, share: tuple[int, int]) -> StreamedLoader:
        """The same rows, read once, for a place (rank, ranks) of the data ranks."""
        other = copy.copy(self)
        other._share = share
        return other

    def steps(self, epoch: int) -> int:
        """Optimizer steps of a pass; UNKNOWN before its end has been read once."""
        made = self.steps_made
        if epoch in made.ends:
            return made.ends[epoch]
        number, index = made.step
        return max(made.ends.get(0, UNKNOWN), index + 1 if epoch == number else 1)

    def micro_batches(self, epoch: int, index: int, micro_batch_size: int) -> list[Batch]:
        """This rank's micro-batches of step `index` of a pass; see Loader.micro_batches."""
        rows = self.steps_made.rows((epoch, index))
        return dealt(rows, self._share, micro_batch_size, self._collated)

    def other_answers(self, epoch: int, index: int, micro_batch_size: int) -> list[Batch]:
        """Nothing: rows are not compared."""
        return []

    def position(self, epoch: int, index: int) -> dict[str, Any]:
        """Where the rows of a step begin, for a checkpoint."""
        return self.steps_made.place((epoch, index))

    def go_to(self, epoch: int, index: int, position: Mapping[str, Any] | None) -> None:
        """Goes on with a step, out of a checkpoint.

        Raises:
            KeyError, TypeError, ValueError: no position.
        """
        if position is None:
            raise ValueError("no position in streamed data")
        self.steps_made.go_to((epoch, index), position)

    def behind(self, steps: int) -> tuple[int, int]:
        """(pass, step of it) behind so many steps; the rows before are read and encoded for it."""
        return self.steps_made.behind(steps)

    def _collated(self, rows: list[Example]) -> Batch:
        return collate([[row] for row in rows], pad_token_id=self._pad_token_id, packed=False)
