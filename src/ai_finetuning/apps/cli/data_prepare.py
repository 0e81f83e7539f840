"""aift data prepare: files to tokens on the disk, once, for any number of runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import UsageError, localized
from ...messages import argument, printable
from .progress import progress_bar

if TYPE_CHECKING:
    from ...config.run import RunConfig
    from ...data.store.mapped import Manifest
    from ...data.store.preparing import Preparation

HELP = localized(
    "ファイルをトークンにしてフォルダーに書きます。学習では data.train にそのフォルダーを指定します。data.* の設定も書けます（例: data.max_length=1024）。",
    "Writes files as tokens into a folder, which data.train then names. Settings may follow, such as data.max_length=1024.",
)
_SETTING = re.compile(r"[a-z_]+(?:\.[a-z_]+)*=")


def prepare(
    files: list[str] = typer.Argument(
        ..., help=localized("データのファイル、フォルダー、パターン、設定", "files, folders or patterns, and settings")
    ),
    model: str = typer.Option(
        ..., "--model", help=localized("学習するモデルの名前かフォルダー", "the model to train: id or folder")
    ),
    out: Path | None = typer.Option(None, "--out", help=localized("トークンを書くフォルダー", "folder for the tokens")),
    processes: int | None = typer.Option(
        None,
        "--processes",
        min=1,
        help=localized("プロセス数。既定はコアの数", "processes; one a core by default"),
    ),
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help=localized(
            "行を数え、トークン数と大きさを見積もるだけにします",
            "counts rows and estimates tokens and size; writes nothing",
        ),
    ),
    as_json: bool = typer.Option(
        False, "--json", help=localized("結果を JSON で出力します", "print the result as JSON")
    ),
    overwrite: bool = typer.Option(
        False, "--overwrite", help=localized("--out の用意したデータを置き換えます", "replaces prepared data in --out")
    ),
) -> None:
    """Prepares data for training; what was interrupted goes on when the same command is run again."""
    import json

    settings = [item for item in files if _SETTING.match(item) and not Path(item).exists()]
    asked, config = _asked([item for item in files if item not in settings], model, settings)
    if dry_run:
        from ...data.store.survey import survey

        found = survey(asked)
        print(json.dumps(found.as_json()) if as_json else "\n".join(map(printable, found.lines())))
        return
    if out is None:
        raise UsageError(
            "--out がありません。トークンを書くフォルダーを指定してください（見積もりだけなら --dry-run）。",
            "--out is missing; name the folder for the tokens (or --dry-run for an estimate).",
        )
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"--out が {out} です。ファイルなので、トークンを書くフォルダーにはできません。別の名前を指定してください。",
            f"--out is {out}, which is a file; name a folder for the tokens.",
        )
    manifest = _prepare(asked, out, processes, overwrite)
    if as_json:
        print(json.dumps(_result(manifest, out), ensure_ascii=False))
        return
    from ...data.files import lines_of_twice
    from ...data.store.preparing import lines_of

    for line in lines_of(manifest, config.data.max_samples) + lines_of_twice(list(map(Path, asked.paths))):
        print(printable(line))
    size = sum(entry.bytes for entry in manifest.arrays.values()) / 2**20
    print(
        localized(
            f"{out} に書きました（{manifest.documents:,} 行、{size:,.1f} MiB）。",
            f"written to {out} ({manifest.documents:,} rows, {size:,.1f} MiB).",
        )
    )
    print(
        f"  aift train model={argument(model)} data.train={argument(out)} {' '.join(map(argument, settings))}".rstrip()
    )


def _asked(files: list[str], model: str, settings: list[str]) -> tuple[Preparation, RunConfig]:
    """What is to be prepared.

    Raises:
        UsageError: no file. InputNotFoundError, DataError, ConfigError, ModelError: see what reads them.
    """
    from ...config.load import load_config
    from ...data.files import find_data, matching
    from ...models.hub import validate_name

    if (given := next((item for item in settings if item.startswith("data.train=")), None)) is not None:
        raise UsageError(
            f"{given} は使えません。用意するファイルは、設定の前に並べてください（aift data prepare FILE... --model M）。",
            f"{given}: name the files to prepare as arguments, not as a setting (aift data prepare FILE... --model M).",
        )
    if not files:
        raise UsageError("データのファイルがありません。", "there is no data file.")
    paths = [path for item in files for path in matching(item)]
    for path in paths:
        find_data(path)
    validate_name(model, weights=False)
    config = load_config(None, settings)
    from ...data.store.preparing import Preparation, sources_of
    from ...execution.tokenizing import training_tokenizer

    tokenizer, sources = training_tokenizer(model, config), sources_of(paths, hashed=False)
    return Preparation(tuple(paths), config.data, tokenizer, sources, config.objective), config


def _prepare(asked: Preparation, out: Path, processes: int | None, overwrite: bool) -> Manifest:
    from ...data.store.folder import prepare_folder
    from ...execution.tokenizing import encoder_for

    whole = sum(source.bytes for source in asked.sources)
    encoder = encoder_for(asked.tokenizer, whole, processes)
    with progress_bar("用意済み", "prepared") as tell:
        _, manifest = prepare_folder(
            asked, out, overwrite=overwrite, encoder=encoder, on_bytes=lambda done: tell(done, max(1, whole))
        )
    return manifest


def _result(manifest: Manifest, out: Path) -> dict[str, Any]:
    report = manifest.report
    return {
        "folder": str(out),
        "rows": manifest.documents,
        "tokens": report.tokens,
        "label_tokens": report.label_tokens,
        "longest": report.longest,
        "left_out": report.left_out,
        "bytes": sum(entry.bytes for entry in manifest.arrays.values()),
        "sources": [{"path": item.path, "bytes": item.bytes, "sha256": item.sha256} for item in manifest.sources],
        "digest": manifest.digest,
    }
