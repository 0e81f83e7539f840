"""aift import"""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from ...errors import localized
from ...messages import argument, printable


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "import",
        help=localized(
            "LLaMA-Factory、Axolotl、TRL の設定ファイルを本ツールの YAML に変換します。",
            "Turns a run file of LLaMA-Factory, Axolotl or TRL into our YAML.",
        ),
    )(import_run)


def import_run(
    file: str = typer.Argument(..., help=localized("そのツールの YAML か JSON", "that tool's YAML or JSON")),
    out: Path | None = typer.Option(
        None,
        "--out",
        help=localized("書き込むファイル（なければ画面に出します）", "file to write; without it, printed"),
    ),
    tool: str | None = typer.Option(
        None,
        "--from",
        help="llamafactory | axolotl | trl" + localized("（なければキーから判断）", " (default: by its keys)"),
    ),
    gpus: int = typer.Option(
        1,
        "--gpus",
        min=1,
        help=localized(
            "学習に使う GPU の数。相手の勾配蓄積は 1 デバイスあたり、本ツールは全デバイスの合計です。",
            "GPUs of the run: their accumulation counts each device, ours all of them.",
        ),
    ),
    force: bool = typer.Option(
        False, "--force", help=localized("既にあるファイルに上書きします。", "Write over a file that exists.")
    ),
) -> None:
    """Lists what became of every key, and writes our YAML where nothing is refused."""
    from ...config.foreign.convert import convert, refusal
    from ...config.foreign.write import list_of, yaml_of
    from ...errors import ConfigError, StorageError

    if out is not None and out.exists() and not force:
        raise ConfigError(
            f"{out} は既にあります。別の名前にするか、--force で上書きしてください。",
            f"{out} exists already; choose another name, or write over it with --force.",
        )
    conversion = convert(file, tool, gpus)
    if conversion.config is None:
        raise refusal(conversion)
    text = yaml_of(conversion)
    # Without --out the YAML is what a pipe gets, and the list what a person reads.
    print(printable(list_of(conversion)), file=sys.stdout if out is not None else sys.stderr)
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StorageError(
            f"{out} に書き込めません（{type(error).__name__}）。フォルダーと権限を確認してください。",
            f"{out} cannot be written ({error}); check the folder and its permissions.",
        ) from None
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift train {argument(out)} --dry-run")
