"""aift answer"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import UsageError, localized
from ...messages import argument
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
    sampling_options,
)
from .file_work import (
    COLUMN,
    NO_ADAPTER,
    OVERWRITE,
    RESTART,
    SEED,
    SHEET,
    Work,
    only_one,
    outcomes_of,
    refuse_unanswered,
    say_columns,
    say_unusual,
)

if TYPE_CHECKING:
    from ...inference.answering import Outcome

_COLUMN = "回答"
_WITHOUT = "（アダプターなし）"


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
    column: str | None = COLUMN,
    answer_column: str = typer.Option(_COLUMN, help=localized("回答を書く列の見出し", "heading of the answers")),
    sheet: str | None = SHEET,
    system: str | None = SYSTEM,
    base: str | None = BASE,
    bits: int | None = BITS,
    compare: bool = typer.Option(
        False,
        "--compare",
        help=localized("アダプターなしの回答も隣の列に書きます", "writes the answers without the adapter as well"),
    ),
    no_adapter: bool = NO_ADAPTER,
    batch_size: int = typer.Option(8, help=localized("一度に答える質問の数", "questions answered at a time")),
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    top_k: int = TOP_K,
    greedy: bool = GREEDY,
    seed: int = SEED,
    overwrite: bool = OVERWRITE,
    restart: bool = RESTART,
) -> int:
    """Answers each row and writes the file with a column more. A command that was stopped goes on where it was."""
    options = sampling_options(max_new_tokens, temperature, top_p, top_k, do_sample=not greedy, batch_size=batch_size)
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
    work = Work(model, asked, out, _asking(system, compare, no_adapter, batch_size, seed, options), base, bits)
    going_on = work.partial.is_file() and not restart
    kind = validate_target(out, asked, columns, overwrite=overwrite or going_on)
    validate_name(model, base)
    say_columns(asked, f"回答の列: {'、'.join(columns)}", f"answers go to {', '.join(columns)}")
    with only_one(work.partial, work.lock):
        return _finish(work, kind, columns, outcomes_of(work, restart))


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


def _finish(work: Work, kind: str, columns: Sequence[str], outcomes: Sequence[Outcome]) -> int:
    """Writes the file, says what has no answer, and removes the answers so far; returns the exit code."""
    from ...inference.answer_files import write_answers

    blank = ("",) * len(columns)
    write_answers(work.out, kind, work.questions, columns, [item.answers or blank for item in outcomes])
    work.partial.unlink(missing_ok=True)
    say_unusual(work, outcomes)
    answered = sum(bool(outcome.ends) for outcome in outcomes)
    print(
        localized(
            f"{answered} 件に答え、{argument(work.out)} に保存しました。",
            f"answered {answered} questions; saved as {argument(work.out)}.",
        )
    )
    refuse_unanswered(work, outcomes, "回答は空です", "their answers are empty")
    return 0
