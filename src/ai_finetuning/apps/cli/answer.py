"""aift answer"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import DataError, RunLockedError, StorageError, UsageError, localized
from ...messages import argument, excerpt, notice, on_one_line, warn
from .answers import (
    BASE,
    BITS,
    GREEDY,
    MAX_NEW_TOKENS,
    MODEL,
    SYSTEM,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    say_cut,
    say_system,
    validate_adapter,
)
from .progress import progress_bar

if TYPE_CHECKING:
    from ...inference.answering import Outcome
    from ...inference.question_files import Questions

_COLUMN = "回答"
_WITHOUT = "（アダプターなし）"
# Rows that a message names.
_NAMED = 10


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "answer",
        help=localized(
            "質問のファイル（CSV・Excel・JSONL）に回答を付けて保存します。",
            "Answers a file of questions (CSV, Excel, JSONL) and writes the answers beside them.",
        ),
    )(answer)


def answer(
    model: str = MODEL,
    questions: Path = typer.Argument(..., help=localized("質問のファイル", "file of questions")),
    out: Path = typer.Option(..., "--out", help=localized("回答を付けたファイル", "file to write, with the answers")),
    column: str | None = typer.Option(
        None, help=localized("質問の列（既定は見出しから判断）", "column that asks (default: found by its heading)")
    ),
    answer_column: str = typer.Option(_COLUMN, help=localized("回答を書く列の見出し", "heading of the answers")),
    sheet: str | None = typer.Option(None, help=localized("Excel のシート", "sheet of a workbook")),
    system: str | None = SYSTEM,
    base: str | None = BASE,
    bits: int | None = BITS,
    compare: bool = typer.Option(
        False,
        "--compare",
        help=localized("アダプターなしの回答も隣の列に書きます", "writes the answers without the adapter as well"),
    ),
    no_adapter: bool = typer.Option(
        False, "--no-adapter", help=localized("アダプターを使わずに答えます", "answers without the adapter")
    ),
    batch_size: int = typer.Option(8, help=localized("一度に答える質問の数", "questions answered at a time")),
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    top_k: int = TOP_K,
    greedy: bool = GREEDY,
    seed: int = typer.Option(0, help=localized("乱数のシード", "seed of the random numbers")),
    overwrite: bool = typer.Option(
        False, "--overwrite", help=localized("--out のファイルを置き換えます", "replaces the file of --out")
    ),
    restart: bool = typer.Option(
        False,
        "--restart",
        help=localized("途中の回答を捨てて最初から始めます", "forgets the answers so far and begins anew"),
    ),
) -> int:
    """Answers each row and writes the file with a column more. A command that was stopped goes on where it was."""
    from ...models.sampling import validate_sampling

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "do_sample": not greedy,
    }
    validate_sampling(**options, batch_size=batch_size)
    if compare and no_adapter:
        raise UsageError(
            "--compare と --no-adapter はどちらか一方を指定してください。",
            "give either --compare or --no-adapter, not both.",
        )
    from ...inference.answer_files import validate_target
    from ...inference.question_files import read_questions
    from ...models.hub import validate_name

    asked = read_questions(questions, column=column, sheet=sheet)
    columns = [answer_column, *([answer_column + _WITHOUT] if compare else [])]
    work = _Work(
        model, asked, out, columns, _asking(system, compare, no_adapter, batch_size, seed, options), base, bits
    )
    going_on = work.partial.is_file() and not restart
    kind = validate_target(out, asked, columns, overwrite=overwrite or going_on)
    validate_name(model, base)
    _say_columns(work)
    with _only_one(work.partial):
        outcomes = _outcomes(work, restart)
        return _finish(work, kind, outcomes)


def _asking(
    system: str | None, compare: bool, no_adapter: bool, batch_size: int, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    return {
        "system": system,
        "variants": (True, False) if compare else (not no_adapter,),
        "batch_size": batch_size,
        "seed": seed,
        "options": options,
    }


@dataclass(frozen=True)
class _Work:
    """One command.

    Attributes:
        asking: the arguments of inference.answering.Asking.
    """

    model: str
    questions: Questions
    out: Path
    columns: list[str]
    asking: dict[str, Any]
    base: str | None
    bits: int | None

    @property
    def partial(self) -> Path:
        """Where the answers lie until all of them are there."""
        return self.out.with_name(f"{self.out.name}.partial.jsonl")

    def made_by(self) -> dict[str, Any]:
        """What the answers depend on; the size of the batches only where each has its random numbers."""
        from ...inference.answering import identity

        asking = dict(self.asking)
        options = asking.pop("options")
        if not options["do_sample"]:
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


def _say_columns(work: _Work) -> None:
    read = work.questions
    path, sheet, asks = on_one_line(read.path), excerpt(read.sheet or ""), excerpt(read.column)
    used = (("添える文章", "material", read.material), ("システムプロンプト", "system prompt", read.system))
    beside = [f"{ja}: {excerpt(name)}" for ja, _, name in used if name]
    also = [f"{en}: {excerpt(name)}" for _, en, name in used if name]
    notice(
        f"{path}{f'（{sheet}）' if sheet else ''}: 質問 {len(read.questions)} 行。質問の列: {'、'.join([asks, *beside])}、回答の列: {'、'.join(work.columns)}",
        f"{path}{f' ({sheet})' if sheet else ''}: {len(read.questions)} questions in the column "
        f"{', '.join([asks, *also])}; answers go to {', '.join(work.columns)}",
    )


@contextlib.contextmanager
def _only_one(partial: Path) -> Iterator[None]:
    """Refuses a second command that writes the same answers."""
    from filelock import FileLock, Timeout

    path = partial.with_name(f"{partial.name}.lock")
    lock = FileLock(str(path))
    try:
        lock.acquire(timeout=0)
    except Timeout:  # an OSError too
        raise RunLockedError(
            f"{partial} には別のコマンドが回答を書いています。終わるのを待つか、--out を変えてください。",
            f"another command is writing {partial}; wait for it, or choose another --out.",
        ) from None
    except OSError as error:
        raise StorageError(
            f"{path} を使えません（{error.strerror or error}）。リンクなら消し、フォルダーの権限を確認してください。",
            f"{path} cannot be used ({error.strerror or error}); remove it if it is a link, and check the folder's rights.",
        ) from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no open file
            path.unlink()
        lock.release()


def _outcomes(work: _Work, restart: bool) -> list[Outcome]:
    """An outcome for each question; the model is loaded only where one is missing."""
    from ...inference.answering import Asking, Record, ask

    record = Record.open(work.partial, work.made_by(), restart=restart)
    questions = work.questions.questions
    missing = [place for place, item in enumerate(questions) if item.text and place not in record.outcomes]
    if record.outcomes:
        done = len(record.outcomes)
        notice(
            f"途中の回答 {work.partial} の {done} 件を使い、残り {len(missing)} 件に答えます（最初からなら --restart）。",
            f"{work.partial} has {done} answers; {len(missing)} are left (--restart begins anew).",
        )
    if not missing:
        empty = Outcome(("",) * len(work.columns))
        return [record.outcomes.get(place, empty) for place in range(len(questions))]
    from ...inference.session import open_model

    opened = open_model(work.model, base=work.base, bits=work.bits)
    if work.asking["variants"] != (True,):
        validate_adapter("--compare / --no-adapter", opened.has_adapter, work.model)
    say_system(opened.system, work.asking["system"])
    try:
        with progress_bar() as progress:
            return ask(opened, questions, Asking(**work.asking), record, progress)
    except KeyboardInterrupt:
        warn(
            f"中断しました。{len(record.outcomes)} 件の回答は {work.partial} にあり、同じコマンドで続きから答えます。",
            f"stopped: {len(record.outcomes)} answers are in {work.partial}, and the same command goes on from there.",
        )
        raise


def _finish(work: _Work, kind: str, outcomes: Sequence[Outcome]) -> int:
    """Writes the file, says what has no answer, and removes the answers so far; returns the exit code."""
    from ...inference.answer_files import write_answers

    questions = work.questions.questions
    blank = ("",) * len(work.columns)
    write_answers(work.out, kind, work.questions, work.columns, [item.answers or blank for item in outcomes])
    work.partial.unlink(missing_ok=True)
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
    ends = [end for outcome in outcomes for end in outcome.ends]
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
    say_cut(ends, work.asking["options"]["max_new_tokens"])
    answered = sum(bool(outcome.ends) for outcome in outcomes)
    print(
        localized(
            f"{answered} 件に答え、{argument(work.out)} に保存しました。",
            f"answered {answered} questions; saved as {argument(work.out)}.",
        )
    )
    refused = [(item, outcome.refused) for item, outcome in zip(questions, outcomes, strict=True) if outcome.refused]
    for item, (ja, en) in refused[:_NAMED]:
        warn(f"{item.place}: {ja}", f"{item.place}: {en}")
    if refused:
        raise DataError(
            f"{len(refused)} 行には答えられませんでした（回答は空です）: {_rows([item.number for item, _ in refused])}",
            f"{len(refused)} rows could not be answered (their answers are empty): "
            f"{_rows([item.number for item, _ in refused])}",
        )
    return 0


def _rows(numbers: Sequence[int]) -> str:
    more = len(numbers) - _NAMED
    shown = ", ".join(map(str, numbers[:_NAMED]))
    if more <= 0:
        return localized(f"{shown} 行目", f"row {shown}")
    return localized(f"{shown} 行目ほか {more} 行", f"row {shown} and {more} more")
