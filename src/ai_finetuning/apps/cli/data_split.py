"""aift data split: a file's rows as training and evaluation data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ...errors import StorageError, UsageError, localized
from ...messages import printable
from .json_out import json_option, write_json

if TYPE_CHECKING:
    from ...config.run import RunConfig

HELP = localized(
    "ファイルを学習用と評価用に分けます。同じ質問とほぼ同じ行は、同じ側に入ります。",
    "Divides a file into training and evaluation data; equal questions and near duplicates are on one side.",
)
_TRAIN, _EVAL = "train.jsonl", "eval.jsonl"
# Settings that a division takes.
_TAKEN = ("data.columns", "data.sheet", "data.skip_bad_rows")


def split(
    context: typer.Context,
    file: str = typer.Argument(..., help=localized("データのファイル", "the data's file")),
    out: Path = typer.Option(
        ...,
        "--out",
        help=localized("train.jsonl と eval.jsonl を書くフォルダー", "folder for train.jsonl and eval.jsonl"),
    ),
    share: float = typer.Option(
        0.1, "--share", help=localized("評価に使う行の割合", "share of the rows for evaluation")
    ),
    time: str | None = typer.Option(
        None,
        "--time",
        help=localized("日時の列。新しい行を評価に使います", "column of the time: the latest rows are for evaluation"),
    ),
    group: str | None = typer.Option(
        None,
        "--group",
        help=localized("この列の値が同じ行も同じ側に入れます", "column whose equal values are on one side too"),
    ),
    by_rows: bool = typer.Option(
        False,
        "--by-rows",
        help=localized(
            "質問や重複を見ずに、行ごとに分けます", "divides row by row, without looking at questions and duplicates"
        ),
    ),
    seed: int = typer.Option(0, "--seed", help=localized("乱数のシード", "seed of the random numbers")),
    overwrite: bool = typer.Option(
        False, "--overwrite", help=localized("出力のファイルを置き換えます", "replaces the files")
    ),
    json_file: str | None = json_option("結果", "the result"),
) -> None:
    """Divides a file by share, by what belongs together, and by time."""
    from ...config.load import load_config
    from ...data.doctor.examination import pair_of
    from ...data.doctor.passages import sample_of
    from ...data.files import read_rows
    from ...data.split import by_share, by_time, times_of, together, validate_column

    if not 0 < share < 1:
        raise UsageError(
            f"--share が {share:g} です。0 より大きく 1 より小さくしてください。",
            f"--share is {share:g}; it must be above 0 and below 1.",
        )
    if by_rows and group is not None:
        raise UsageError("--by-rows と --group は一緒に使えません。", "--by-rows and --group do not go together.")
    targets = [out / _TRAIN, out / _EVAL]
    there = next((path for path in targets if path.exists()), None)
    if there is not None and not overwrite:
        raise UsageError(
            f"{there} はすでにあります。別のフォルダーにするか、--overwrite を付けてください。",
            f"{there} exists already; choose another folder, or add --overwrite.",
        )
    whole = load_config(None, list(context.args))
    _refuse_unused(whole)
    config = whole.data
    rows, _ = read_rows(file, skip_bad_rows=config.skip_bad_rows, columns=config.columns, sheet=config.sheet)
    times = times_of(rows, time) if time is not None else None
    if group is not None:
        validate_column(rows, group)
    values = [str(row.values.get(group) or "") for row in rows] if group is not None else []
    pairs = [pair_of(sample_of(row, number, config.columns)) for number, row in enumerate(rows, start=1)]
    root = list(range(len(rows))) if by_rows else together(pairs, values)
    divided = by_time(root, times, share, file) if times is not None else by_share(root, share, seed, file)
    _write(targets, [[rows[index].values for index in side] for side in (divided.train, divided.evaluated)])
    grouped = len(rows) - len(set(root))
    if json_file is not None:
        sides = {"train": len(divided.train), "eval": len(divided.evaluated)}
        write_json(json_file, sides | {"kept_together": grouped, "kept_back": divided.kept_back})
        return
    lines = [
        localized(
            f"学習 {len(divided.train):,} 行: {targets[0]}、評価 {len(divided.evaluated):,} 行: {targets[1]}",
            f"training: {len(divided.train):,} rows, {targets[0]}; evaluation: {len(divided.evaluated):,} rows, {targets[1]}",
        )
    ]
    if grouped:
        lines.append(
            localized(
                f"同じ質問やほぼ同じ行として、ほかの行と同じ側に入れた行: {grouped:,}",
                f"rows kept on the side of another one (equal questions, near duplicates): {grouped:,}",
            )
        )
    if divided.kept_back:
        lines.append(
            localized(
                f"新しくても、同じ質問かほぼ同じ行が前にあるため学習に残した行: {divided.kept_back:,}",
                f"late rows that stay in training, as their question or a near duplicate is older: {divided.kept_back:,}",
            )
        )
    for line in lines:
        print(printable(line))


def _refuse_unused(config: RunConfig) -> None:
    """Refuses settings that a division does not take, such as the share of a training.

    Raises:
        UsageError: with those that it takes, or the option that is meant.
    """
    from ...config.section import explicitly_set

    own = {f"data.{name}" for name in explicitly_set(config.data)}
    given = sorted((own - set(_TAKEN)) | (explicitly_set(config) - {"data"}))
    if not given:
        return
    ja, en = "評価に使う割合は --share 0.1 で指定してください。", " The share for evaluation is --share 0.1."
    ja, en = (ja, en) if "data.eval" in given else ("", "")
    raise UsageError(
        f"aift data split では {', '.join(given)} を使いません。{ja}使える設定: {', '.join(_TAKEN)}",
        f"aift data split does not take {', '.join(given)}.{en} Settings that it takes: {', '.join(_TAKEN)}.",
    )


def _write(targets: list[Path], sides: list[list[dict[str, object]]]) -> None:
    from ...data.doctor.repair import write_rows

    try:
        targets[0].parent.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(targets, sides, strict=True):
            write_rows(rows, path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise StorageError(
            f"{targets[0].parent} に書けません（{reason}）。", f"{targets[0].parent} cannot be written ({reason})."
        ) from None
