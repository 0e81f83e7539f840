"""aift data doctor: what is wrong with training data, and rows without it in another file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from ...errors import DataError, UsageError, localized
from ...japanese.style import Style
from ...messages import argument, printable
from .json_out import STDOUT, not_written, write_text

_FIXES = ("safe", "all")
_STYLES: dict[str, Style] = {"敬体": "polite", "常体": "plain", "polite": "polite", "plain": "plain"}
HELP = localized(
    "学習データの問題を調べます（文字化け、重複、評価データの混入、個人情報など）。--fix を付けたときだけ、直した行を別のファイルに書きます。",
    "Examines training data: mojibake, duplicates, leakage, personal data and more. Only with --fix are repaired rows written, "
    "to another file.",
)


_IGNORE = typer.Option(
    [],
    "--ignore",
    help=localized(
        "使わない規則のキー（コンマ区切り、繰り返し可。data.doctor.ignore と同じ）",
        "keys of rules to leave out, with commas between; may be repeated (like data.doctor.ignore)",
    ),
)


def doctor(
    context: typer.Context,
    file: str = typer.Argument(..., help=localized("データのファイル", "the data's file")),
    evaluated: str | None = typer.Option(
        None, "--eval", help=localized("評価データ（混入を調べます）", "evaluation data, to look for leakage")
    ),
    model: str | None = typer.Option(
        None,
        "--model",
        help=localized("学習するモデル（特殊トークンと長さを調べます）", "the model to train: special tokens, lengths"),
    ),
    max_length: int = typer.Option(
        512,
        "--max-length",
        help=localized(
            "--model があるときの、1 行の最大トークン数", "with --model: maximum length of a row, in tokens"
        ),
    ),
    fix: str | None = typer.Option(
        None,
        "--fix",
        help=localized(
            "safe（安全なもの）か all（すべて）を直して --out に書きます", "safe or all: writes repaired rows to --out"
        ),
    ),
    mask: bool = typer.Option(
        False,
        "--mask",
        help=localized("個人情報と秘密を伏せて --out に書きます", "masks personal data and secrets, written to --out"),
    ),
    keep_style: str | None = typer.Option(
        None,
        "--keep-style",
        help=localized(
            "敬体か常体。ほかの文体や混在の回答の行を除きます",
            "敬体 or 常体: leaves out rows of another style, or of both",
        ),
    ),
    out: Path | None = typer.Option(
        None, "--out", help=localized("直した行を書くファイル（JSON Lines）", "file for the rows (JSON Lines)")
    ),
    undo: Path | None = typer.Option(
        None,
        "--undo",
        help=localized(
            "doctor.jsonl の変更を FILE から取り消し、--out に書きます",
            "a doctor.jsonl: takes its changes back from FILE, into --out",
        ),
    ),
    rule: list[str] = typer.Option(
        [],
        "--rule",
        help=localized("このキーの規則だけを使います（繰り返し可）", "only rules of this key; may be repeated"),
    ),
    ignore: list[str] = _IGNORE,
    show: str | None = typer.Option(
        None, "--show", help=localized("この規則で見つかった所を表示します", "shows what a rule found")
    ),
    json_path: str | None = typer.Option(
        None,
        "--json",
        help=localized(
            "報告を JSON で書くファイル（- は標準出力）", "file for the report as JSON; - is standard output"
        ),
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help=localized("--out のファイルを置き換えます", "replaces the file of --out")
    ),
) -> int:
    """Examines a file; 65 where a rule of severity error found something."""
    from ...data.doctor.repair import JOURNAL

    writes = fix is not None or mask or keep_style is not None or undo is not None
    left = [key.strip() for part in ignore for key in part.split(",") if key.strip()]
    _check(fix, [*rule, *left], show, out, writes)
    if out is not None:
        others = [Path(name) for name in (file, evaluated, undo) if name is not None]
        _check_out(out, others, [] if undo is not None else [JOURNAL], overwrite)
    if undo is not None:
        assert out is not None
        return _undo(file, undo, out)
    return _examine(
        context,
        file,
        (evaluated, model, max_length),
        (fix, mask, out, _style_of(keep_style)),
        (rule, left, show, json_path),
    )


def _check(fix: str | None, rule: list[str], show: str | None, out: Path | None, writes: bool) -> None:
    """Refuses options that do not go together.

    Raises:
        UsageError: with what is wrong.
    """
    from ...data.doctor.rules import BY_KEY

    if fix is not None and fix not in _FIXES:
        raise UsageError(
            f"--fix が {fix} です。safe か all にしてください。", f"--fix is {fix}; it must be safe or all."
        )
    for key in (*rule, *([show] if show is not None else [])):
        if key not in BY_KEY:
            raise UsageError(
                f"{key} という規則はありません。使えるのは {', '.join(BY_KEY)} です。",
                f"there is no rule {key}; known: {', '.join(BY_KEY)}.",
            )
    if writes != (out is not None):
        raise UsageError(
            "--out は --fix、--mask、--keep-style、--undo と一緒に指定してください。元のファイルは書き換えません。",
            "--out goes together with --fix, --mask, --keep-style or --undo: the file itself is never changed.",
        )


def _style_of(name: str | None) -> Style | None:
    """The style that --keep-style names.

    Raises:
        UsageError: it names none.
    """
    if name is not None and name not in _STYLES:
        raise UsageError(
            f"--keep-style が {name} です。敬体か常体にしてください。",
            f"--keep-style is {name}; it must be 敬体 (polite) or 常体 (plain).",
        )
    return _STYLES[name] if name is not None else None


def _check_out(out: Path, others: list[Path], beside: list[str], overwrite: bool) -> None:
    """Refuses a target that would replace something.

    Raises:
        UsageError: the input itself, a folder, or a file that is there already.
    """
    if out.is_dir() or any(out.exists() and other.exists() and out.samefile(other) for other in others):
        raise UsageError(
            f"--out が {out} です。入力と別の、ファイルの名前にしてください。",
            f"--out is {out}; name a file other than the input.",
        )
    there = next((path for path in (out, *(out.with_name(name) for name in beside)) if path.exists()), None)
    if there is not None and not overwrite:
        raise UsageError(
            f"{there} はすでにあります。別のフォルダーか名前にするか、--overwrite を付けてください。",
            f"{there} exists already; choose another folder or name, or add --overwrite.",
        )


def _examine(
    context: typer.Context,
    file: str,
    beside: tuple[str | None, str | None, int],
    changes: tuple[str | None, bool, Path | None, Style | None],
    asked: tuple[list[str], list[str], str | None, str | None],
) -> int:
    from ...config.load import load_config
    from ...config.section import explicitly_set
    from ...data.doctor import repair, report
    from ...data.doctor.examination import chosen_rules, examine
    from ...data.doctor.rules import validate_keys

    (evaluated, model, max_length), (fix, mask, out, style), (only, left, show, json_path) = beside, changes, asked
    settings = load_config(None, list(context.args))
    config = settings.data
    validate_keys(config.doctor.ignore, "data.doctor.ignore")
    ignore = [*left, *config.doctor.ignore]
    tokenizer, more = _lengths(file, model, max_length, context) if model is not None else (None, [])
    keys = [*only, *([show] if show is not None and only and show not in only else [])]
    found = examine(
        file,
        columns=config.columns,
        sheet=config.sheet,
        evaluated=evaluated,
        tokenizer=tokenizer,
        only=keys,
        ignore=ignore,
        objective=settings.objective if "objective" in explicitly_set(settings) else None,
    )
    done = None
    if out is not None:
        if found.unread:
            raise DataError(
                f"{file} に読めない行が {found.unread} 行あり、書き出すと失われます。--show unreadable で表示されます。先に直してください。",
                f"{file} has {found.unread} rows that cannot be read and would be lost; --show unreadable names them. "
                "Repair them first.",
            )
        wanted = repair.Wanted(fix, mask, chosen_rules(keys, ignore), config.columns, style, found.objective)
        done = repair.repair(found.samples, wanted)
        try:
            journal = repair.write(done, found.samples, out)
        except OSError as error:
            raise not_written(out, error) from None
    if json_path is not None:
        write_text(json_path, report.json_text(found, done))
    if json_path != STDOUT:
        shown = report.shown(found, show) if show is not None else [*report.lines(found, done), *more]
        for line in shown:
            print(printable(line))
        if out is not None:
            wrote = localized(f"書きました: {out}、変更の記録: {journal}", f"wrote {out}, and the changes to {journal}")
            print(printable(wrote))
            back = f"aift data doctor {argument(out)} --undo {argument(journal)} --out FILE"
            print(localized(f"元に戻すには: {back}", f"to take them back: {back}"))
    if done is not None:
        from ...data.doctor.examination import hits_of

        found.hits = hits_of(done.rows, found.rules)
    return DataError.exit_code if found.has_errors else 0


def _lengths(file: str, model: str, max_length: int, context: typer.Context) -> tuple[Any, list[str]]:
    """The model's tokenizer, and what `aift data stats` would say about the rows with it."""
    from .data_loading import load

    try:
        tokenizer, _, report, _ = load(context, file, model, max_length, None)
    except DataError as error:  # no row can be used, or too much would be cut: a finding like others
        from ...models.tokenizers import load_tokenizer

        return load_tokenizer(model), [str(error)]
    return tokenizer, [f" {line}" for line in report.lines()]


def _undo(file: str, journal: Path, out: Path) -> int:
    from ...data.doctor import repair
    from ...data.files import read_rows

    path = Path(file)
    # A file of which every row was left out is empty.
    rows = [] if path.is_file() and not path.stat().st_size else read_rows(file)[0]
    back = repair.undo([row.values for row in rows], journal)
    try:
        repair.write_rows(back, out)
    except OSError as error:
        raise not_written(out, error) from None
    print(
        localized(
            f"変更を取り消した {len(back):,} 行を {out} に書きました。",
            f"wrote {len(back):,} rows as they were to {out}.",
        )
    )
    return 0
