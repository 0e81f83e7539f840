"""aift score"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import ConfigError, DataError, localized
from ...messages import argument, notice, on_one_line, warn
from .file_work import OVERWRITE

if TYPE_CHECKING:
    from ...inference.sampled import Sampled


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "score",
        help=localized(
            "aift sample の回答の正誤を判定し、学習データを書きます。",
            "Judges the answers of `aift sample` and writes training data of them.",
        ),
    )(score)


def score(
    file: Path = typer.Argument(..., help=localized("aift sample のファイル", "file of aift sample")),
    by: str = typer.Option(
        ...,
        "--by",
        help=localized(
            "exact（正解と一致）、regex（--pattern）、checks（質問の checks 列）、FILE.py:関数名（そのファイルのコードを実行します）",
            "exact (the expected answer), regex (--pattern), checks (the questions' column checks), or FILE.py:NAME (runs "
            "that file's code)",
        ),
    ),
    expected: str | None = typer.Option(
        None,
        help=localized(
            "正解の列（既定は見出しから判断）", "column of the expected answer (default: found by its heading)"
        ),
    ),
    pattern: str | None = typer.Option(
        None,
        help=localized(
            "正規表現。見つかれば正しい回答です。{expected} は正解に置き換わります",
            "regular expression that right answers hold; {expected} stands for the expected answer",
        ),
    ),
    sft: Path | None = typer.Option(
        None, "--sft", help=localized("正しい回答を学習データとして書く .jsonl", ".jsonl of right answers, to train on")
    ),
    pairs: Path | None = typer.Option(
        None,
        "--pairs",
        help=localized(
            "正しい回答と誤った回答の組（prompt・chosen・rejected）を書く .jsonl",
            ".jsonl of right and wrong answers (prompt, chosen, rejected)",
        ),
    ),
    out: Path | None = typer.Option(
        None, "--out", help=localized("判定（right）を付けて書く .jsonl", ".jsonl with the marks beside (right)")
    ),
    per_question: int = typer.Option(
        1,
        help=localized(
            "1 問から --sft と --pairs に書く最大の行数", "most rows of a question, in --sft and in --pairs"
        ),
    ),
    overwrite: bool = OVERWRITE,
) -> None:
    """Judges every answer, says how many are right, and writes what is asked for."""
    from ...inference.answer_files import validate_file
    from ...inference.sampled import KIND, read_samples

    if per_question < 1:
        raise ConfigError(
            f"--per-question が {per_question} です。1 以上にしてください。",
            f"--per-question is {per_question}; it must be at least 1.",
        )
    rows = read_samples(file)
    named = (("--sft", sft), ("--pairs", pairs), ("--out", out))
    targets = {option: path for option, path in named if path is not None}
    for option, path in targets.items():
        validate_file(option, path, (KIND,), file, overwrite=overwrite)
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise ConfigError(
            f"{'・'.join(targets)} に同じファイルは指定できません。", f"{', '.join(targets)} must be different files."
        )
    from ...evaluation.judging import Rule, function_of, judge_by, judged

    rule = Rule(by, expected, pattern)
    if rule.is_code:
        function_of(by)  # before it is told that anything runs
        warn(
            f"--by の {on_one_line(by)} を実行します。このファイルのコードは、あなたの権限で何でもできます。内容を知っているファイルだけを指定してください。",
            f"running {on_one_line(by)}: the code of this file can do whatever you can do here; name only files that you "
            "know.",
        )
    marks = judged(rows, judge_by(rule, rows))
    _say(rows, marks)
    _write(targets, rows, marks, per_question)


def _say(rows: Sequence[Sampled], marks: Sequence[Sequence[bool]]) -> None:
    from ...evaluation.chosen import counts

    found = counts(rows, marks)
    print(
        localized(
            f"質問 {len(rows):,} 問、回答 {found.answers:,} 個のうち正しいもの {found.right:,} 個（{found.right / found.answers:.1%}）。"
            f"全部正しい質問 {found.all_right:,}、一部が正しい質問 {found.mixed:,}、全部誤りの質問 {found.all_wrong:,}。",
            f"{len(rows):,} questions, {found.answers:,} answers, of which {found.right:,} are right "
            f"({found.right / found.answers:.1%}). Questions with all right: {found.all_right:,}, some right: "
            f"{found.mixed:,}, all wrong: {found.all_wrong:,}.",
        )
    )
    if found.cut:
        notice(
            f"途中で終わった回答 {found.cut:,} 個は、--sft と --pairs に入れません。",
            f"{found.cut:,} answers did not end by themselves and go into neither --sft nor --pairs.",
        )


def _write(
    targets: dict[str, Path], rows: Sequence[Sampled], marks: Sequence[tuple[bool, ...]], per_question: int
) -> None:
    """Writes all files, or none where one would be empty."""
    from dataclasses import replace

    from ...evaluation.chosen import pair_rows, supervised_rows
    from ...inference.sampled import write_lines

    made: dict[str, list[dict[str, Any]]] = {
        "--sft": supervised_rows(rows, marks, per_question),
        "--pairs": pair_rows(rows, marks, per_question),
        "--out": [replace(row, right=mark).as_dict() for row, mark in zip(rows, marks, strict=True)],
    }
    empty = [option for option in targets if not made[option]]
    if empty:
        raise DataError(
            f"{'・'.join(empty)} に書く行がありません（--sft には正しい回答、--pairs には正しい回答と誤った回答のある質問が要ります）。何も書いていません。",
            f"there is no row for {', '.join(empty)}: --sft takes right answers, --pairs questions with right and wrong "
            "ones. Nothing is written.",
        )
    for option, path in targets.items():
        write_lines(path, made[option])
        print(
            localized(
                f"{option}: {len(made[option]):,} 行を {argument(path)} に保存しました。",
                f"{option}: {len(made[option]):,} rows, saved as {argument(path)}.",
            )
        )
