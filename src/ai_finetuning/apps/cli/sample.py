"""aift sample"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import ConfigError, localized
from ...messages import argument
from .answers import BASE, BITS, MAX_NEW_TOKENS, MODEL, SYSTEM, sampling_options
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

# Answers to one question, which are in memory together.
_MOST = 10_000


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "sample",
        help=localized(
            "質問のファイルの 1 問ごとに、回答の候補をいくつも作ります（aift score で選びます）。",
            "Draws several answers to each question of a file (`aift score` chooses among them).",
        ),
    )(sample)


def sample(
    model: str = MODEL,
    questions: Path = typer.Argument(..., help=localized("質問のファイル", "file of questions")),
    out: Path = typer.Option(
        ..., "--out", help=localized("回答の候補を書く .jsonl ファイル", ".jsonl file to write, with the answers")
    ),
    samples: int = typer.Option(
        8, "--samples", "-k", help=localized("1 問あたりの回答の数", "answers to each question")
    ),
    column: str | None = COLUMN,
    sheet: str | None = SHEET,
    system: str | None = SYSTEM,
    base: str | None = BASE,
    bits: int | None = BITS,
    no_adapter: bool = NO_ADAPTER,
    batch_size: int = typer.Option(16, help=localized("一度に作る回答の数", "answers made at a time")),
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = typer.Option(
        1.0, "--temperature", help=localized("回答のばらつき（0 より大きい値）", "above 0: how varied")
    ),
    top_p: float = typer.Option(
        1.0, "--top-p", help=localized("上位の確率の合計（0 から 1）", "share of the probability kept")
    ),
    top_k: int = typer.Option(
        0, "--top-k", help=localized("候補のトークン数（0 は制限なし）", "tokens to choose from; 0: all")
    ),
    seed: int = SEED,
    overwrite: bool = OVERWRITE,
    restart: bool = RESTART,
) -> int:
    """Draws the answers and writes a line a question. A command that was stopped goes on where it was."""
    if not temperature > 0:
        raise ConfigError(
            f"--temperature が {temperature} です。0 より大きい値にしてください（毎回同じ答え 1 つなら aift answer --greedy）。",
            f"--temperature is {temperature}; it must be above 0 (for the one answer that is the same every time: "
            "aift answer --greedy).",
        )
    options = sampling_options(max_new_tokens, temperature, top_p, top_k, do_sample=True, batch_size=batch_size)
    if not 1 <= samples <= _MOST:
        raise ConfigError(
            f"--samples (-k) が {samples:,} です。1 以上 {_MOST:,} 以下にしてください。",
            f"--samples (-k) is {samples:,}; it must be at least 1 and at most {_MOST:,}.",
        )
    from ...inference.answer_files import validate_file
    from ...inference.question_files import read_questions
    from ...inference.sampled import KIND
    from ...models.hub import validate_name

    asked = read_questions(questions, column=column, sheet=sheet)
    asking = {
        "system": system,
        "variants": (not no_adapter,),
        "batch_size": batch_size,
        "seed": seed,
        "options": options,
        "samples": samples,
    }
    work = Work(model, asked, out, asking, base, bits)
    going_on = work.partial.is_file() and not restart
    validate_file("--out", out, (KIND,), questions, overwrite=overwrite or going_on)
    validate_name(model, base)
    say_columns(asked, f"回答: 1 問あたり {samples} 個", f"{samples} answers to each")
    with only_one(work.partial, work.lock):
        return _finish(work, restart)


def _finish(work: Work, restart: bool) -> int:
    """Draws what is missing, writes the file, says what has no answer; returns the exit code."""
    outcomes = outcomes_of(work, restart)
    from ...inference.sampled import sampled, write_lines

    lines = sampled(work.questions, outcomes, work.asking["system"])
    write_lines(work.out, [line.as_dict() for line in lines])
    work.partial.unlink(missing_ok=True)
    say_unusual(work, outcomes)
    count = sum(len(line.samples) for line in lines)
    print(
        localized(
            f"{len(lines)} 問に {count} 個の回答を作り、{argument(work.out)} に保存しました。選ぶには: aift score {argument(work.out)} --by …",
            f"drew {count} answers to {len(lines)} questions; saved as {argument(work.out)}. To choose among them: "
            f"aift score {argument(work.out)} --by ...",
        )
    )
    refuse_unanswered(work, outcomes, f"{argument(work.out)} にその行はありません", "they are not in the file")
    return 0
