"""aift init"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from ...errors import UsageError, localized
from ...messages import argument


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "init",
        help=localized(
            "説明付きの設定ファイル run.yaml を作ります。そのままでも学習できます。",
            "Writes a run.yaml with explanations. It trains as it is.",
        ),
    )(init)


def init(
    file: str | None = typer.Argument(
        None,
        help=localized(
            "学習データのファイルです（なければ同梱のデータを使います）。",
            "the training data (without it, data that ship with the toolkit)",
        ),
    ),
    out: Path = typer.Option(Path("run.yaml"), "--out", help=localized("書き込むファイルです。", "the file to write")),
    model: str = typer.Option(
        "embedded:kotoha-tiny",
        "--model",
        help=localized("モデル名かフォルダーです。", "model id or folder"),
    ),
    force: bool = typer.Option(
        False, "--force", help=localized("既にあるファイルに上書きします。", "write over a file that exists")
    ),
) -> None:
    """Writes a commented run.yaml."""
    from ...data.files import find_data
    from ...embedded import MODEL
    from ...models.named import find_named
    from ...planner.presets import PRACTICE_RATE, USUAL_RATE

    if file is not None and Path(file).suffix.lower() in (".yaml", ".yml"):
        shown = argument(file)
        raise UsageError(
            f"{file} は学習データではなく設定ファイルの名前です。書き込むファイルは --out {shown} で指定してください（学習データがあれば aift init データ --out {shown}）。",
            f"{file} is the name of a settings file, not of training data. Name the file to write with --out {shown} (and "
            f"training data in front of it: aift init DATA --out {shown}).",
        )
    if file is not None:
        find_data(file)
    find_named(model)
    values = {
        "model.name": model,
        "method": "lora",
        "data.train": file or "embedded:kotoha-qa",
        "data.eval": 0.1,
        "data.max_length": 512,
        "training.learning_rate": PRACTICE_RATE if model == MODEL else USUAL_RATE,
        "training.num_epochs": 3,
        "training.schedule.warmup_ratio": 0.1,
        "training.output_dir": f"outputs/{Path(file).stem}" if file else "outputs/first",
        "lora.r": 16,
        "lora.lora_alpha": 32,
    }
    write_run_file(out, values, overwrite=force)
    print(localized(f"{out} を作りました。", f"{out} is written."))
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift plan {argument(out)}")
    print(f"  aift train {argument(out)}")


def write_run_file(path: Path, values: Mapping[str, Any], *, overwrite: bool) -> None:
    """Writes a commented run file.

    Raises:
        ConfigError: it exists already. StorageError: it cannot be written.
    """
    from ...config.commented import commented_yaml
    from ...errors import ConfigError, StorageError
    from ...system.files import write_in_place

    if os.path.lexists(path) and not overwrite:
        raise ConfigError(
            f"{path} は既にあります。別の名前にするか、--force で上書きしてください。",
            f"{path} exists already; choose another name, or write over it with --force.",
        )
    head = (
        localized(
            f"学習: aift train {argument(path)}　計画だけ: aift plan {argument(path)}",
            f"to train: aift train {argument(path)}   the plan alone: aift plan {argument(path)}",
        ),
        localized(
            "# の付いた設定は既定値です。# を外すと変えられます（その見出しの # も外します）。すべての設定: aift train --help",
            "Settings behind a # have their default; remove the # (and that of their heading) to change them. All settings: aift train --help",
        ),
    )
    try:
        write_in_place(path, commented_yaml(values, head).encode("utf-8"))
    except OSError as error:
        raise StorageError(
            f"{path} に書き込めません（{type(error).__name__}）。フォルダーと権限を確認してください。",
            f"{path} cannot be written ({error}); check the folder and its permissions.",
        ) from None
