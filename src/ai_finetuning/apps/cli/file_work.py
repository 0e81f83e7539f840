"""What the verbs that answer a file of questions have in common: a command's work, its answers so far, its reports; and
that only one command at a time writes the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import DataError, RunLockedError, StorageError, localized
from ...messages import argument, excerpt, notice, on_one_line, warn
from .answers import say_cut, say_system, validate_adapter
from .progress import progress_bar

if TYPE_CHECKING:
    from ...inference.answering import Outcome
    from ...inference.question_files import Questions

# Options of these verbs.
COLUMN = typer.Option(
    None,
    "--column",
    help=localized("質問の列（既定は見出しから判断）", "column that asks (default: found by its heading)"),
)
SHEET = typer.Option(None, "--sheet", help=localized("Excel のシート", "sheet of a workbook"))
SEED = typer.Option(0, "--seed", help=localized("乱数のシード", "seed of the random numbers"))
OVERWRITE = typer.Option(
    False, "--overwrite", help=localized("書き出すファイルがあれば置き換えます", "replaces files that exist")
)
RESTART = typer.Option(
    False,
    "--restart",
    help=localized("途中の回答を捨てて最初から始めます", "forgets the answers so far and begins anew"),
)
NO_ADAPTER = typer.Option(
    False, "--no-adapter", help=localized("アダプターを使わずに答えます", "answers without the adapter")
)
# Rows that a message names.
_NAMED = 10


@dataclass(frozen=True)
class Work:
    """One command.

    Attributes:
        model: name or folder.
        questions: the file.
        out: what is written when all questions are answered.
        asking: the arguments of inference.answering.Asking.
        base, bits: of the model.
    """

    model: str
    questions: Questions
    out: Path
    asking: dict[str, Any]
    base: str | None
    bits: int | None

    @property
    def partial(self) -> Path:
        """Where the answers lie until all of them are there."""
        return self.out.with_name(f"{self.out.name}.partial.jsonl")

    @property
    def lock(self) -> Path:
        """What only one command at a time holds."""
        return self.partial.with_name(f"{self.partial.name}.lock")

    def made_by(self) -> dict[str, Any]:
        """What the answers depend on."""
        from ...inference.answering import identity

        asking = {name: value for name, value in self.asking.items() if name not in ("options", "batch_size")}
        options = self.asking["options"]
        if options["do_sample"]:
            asking["seeds"] = "of each answer"
        else:
            options = {"max_new_tokens": options["max_new_tokens"]}
            asking = {name: asking[name] for name in ("system", "variants")}
        read = self.questions
        return {
            "model": identity(self.model),
            "base": self.base,
            "bits": self.bits,
            "questions": read.digest,
            "columns": [read.column, read.material, read.system, read.sheet],
            **asking,
            **options,
        }


def say_columns(questions: Questions, ja: str, en: str) -> None:
    """One line on what is read.

    Args:
        ja, en: what becomes of it.
    """
    path, sheet, asks = on_one_line(questions.path), excerpt(questions.sheet or ""), excerpt(questions.column)
    used = (("添える文章", "material", questions.material), ("システムプロンプト", "system prompt", questions.system))
    beside = [f"{name}: {excerpt(column)}" for name, _, column in used if column]
    also = [f"{name}: {excerpt(column)}" for _, name, column in used if column]
    notice(
        f"{path}{f'（{sheet}）' if sheet else ''}: 質問 {len(questions.questions)} 行。質問の列: {'、'.join([asks, *beside])}、{ja}",
        f"{path}{f' ({sheet})' if sheet else ''}: {len(questions.questions)} questions in the column "
        f"{', '.join([asks, *also])}; {en}",
    )


@contextlib.contextmanager
def only_one(written: Path, path: Path) -> Iterator[None]:
    """Refuses a second command that writes the same file, or into the same folder.

    Args:
        written: it.
        path: of the lock, in a folder that is made where it is missing.

    Raises:
        RunLockedError: another command is at it. StorageError: the lock cannot be made.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:  # an OSError too
        raise RunLockedError(
            f"{argument(written)} には別のコマンドが書いています。終わるのを待つか、--out を変えてください。",
            f"another command is writing {argument(written)}; wait for it, or choose another --out.",
        ) from None
    except OSError as error:
        raise StorageError(
            f"{argument(path)} を使えません（{error.strerror or error}）。リンクなら消し、フォルダーの権限を確認するか、--out を変えてください。",
            f"{argument(path)} cannot be used ({error.strerror or error}); remove it if it is a link, check the folder's "
            "rights, or choose another --out.",
        ) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def outcomes_of(work: Work, restart: bool) -> list[Outcome]:
    """An outcome for each question; the model is loaded only where one is missing."""
    from ...inference.answering import Asking, Outcome, Record, ask

    record = Record.open(work.partial, work.made_by(), restart=restart)
    questions, asking = work.questions.questions, Asking(**work.asking)
    missing = [place for place, item in enumerate(questions) if item.text and place not in record.outcomes]
    if record.outcomes:
        done = len(record.outcomes)
        notice(
            f"途中の回答 {work.partial} の {done} 件を使い、残り {len(missing)} 件に答えます（最初からなら --restart）。",
            f"{work.partial} has {done} answers; {len(missing)} are left (--restart begins anew).",
        )
    if not missing:
        empty = Outcome(("",) * len(asking.variants) * asking.samples)
        return [record.outcomes.get(place, empty) for place in range(len(questions))]
    from ...inference.session import open_model

    opened = open_model(work.model, base=work.base, bits=work.bits)
    if asking.variants != (True,):
        validate_adapter("--compare" if True in asking.variants else "--no-adapter", opened.has_adapter, work.model)
    say_system(opened.system, asking.system)
    try:
        with progress_bar() as progress:
            return ask(opened, questions, asking, record, progress)
    except KeyboardInterrupt:
        warn(
            f"中断しました。{len(record.outcomes)} 件の回答は {work.partial} にあり、同じコマンドで続きから答えます。",
            f"stopped: {len(record.outcomes)} answers are in {work.partial}, and the same command goes on from there.",
        )
        raise


def say_unusual(work: Work, outcomes: Sequence[Outcome]) -> None:
    """A line for each kind of answer that is not as one expects: none, an empty one, one that did not end by itself."""
    questions = work.questions.questions
    empty = [item.number for item in questions if not item.text and not item.unreadable]
    if empty:
        warn(
            f"質問が空の行には答えていません: {_rows(empty)}", f"rows without a question have no answer: {_rows(empty)}"
        )
    silent = [
        item.number
        for item, outcome in zip(questions, outcomes, strict=True)
        if item.text and outcome.refused is None and not all(outcome.answers)
    ]
    if silent:
        warn(f"回答が空だった行: {_rows(silent)}", f"rows whose answer is empty: {_rows(silent)}")
    for end, ja, en in (
        ("positions", "モデルの上限で途中までの回答", "answers that end early at the model's last position"),
        (
            "loop",
            "同じ言葉の繰り返しになり途中で終えた回答",
            "answers that were ended because they repeated themselves",
        ),
    ):
        rows = [item.number for item, outcome in zip(questions, outcomes, strict=True) if end in outcome.ends]
        if rows:
            warn(f"{ja}: {_rows(rows)}", f"{en}: {_rows(rows)}")
    say_cut([end for outcome in outcomes for end in outcome.ends], work.asking["options"]["max_new_tokens"])


def refuse_unanswered(work: Work, outcomes: Sequence[Outcome], ja: str, en: str) -> None:
    """Names the rows that could not be asked, behind everything that was written.

    Args:
        ja, en: what became of their answers.

    Raises:
        DataError: there are such rows.
    """
    pairs = zip(work.questions.questions, outcomes, strict=True)
    refused = [(item, outcome.refused) for item, outcome in pairs if outcome.refused]
    for item, reason in refused[:_NAMED]:
        warn(f"{item.place}: {reason[0]}", f"{item.place}: {reason[1]}")
    if refused:
        rows = _rows([item.number for item, _ in refused])
        raise DataError(
            f"{len(refused)} 行には答えられませんでした（{ja}）: {rows}",
            f"{len(refused)} rows could not be answered ({en}): {rows}",
        )


def _rows(numbers: Sequence[int]) -> str:
    more = len(numbers) - _NAMED
    shown = ", ".join(map(str, numbers[:_NAMED]))
    if more <= 0:
        return localized(f"{shown} 行目", f"row {shown}")
    return localized(f"{shown} 行目ほか {more} 行", f"row {shown} and {more} more")
