"""aift web"""

from __future__ import annotations

import os
from pathlib import Path

import typer

from ...errors import ConfigError, UsageError, localized

_PORT = 8050


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "web",
        help=localized(
            "ブラウザーの画面を開きます（この PC からのみ接続できます）。学習は画面を閉じても続きます。",
            "Opens the page in your browser, for this PC only. Trainings outlive it.",
        ),
    )(web)


def web(
    port: int = typer.Option(
        _PORT, min=0, max=65535, help=localized("ポート番号（使用中なら次の番号）", "port; the next free one if taken")
    ),
    listen: str = typer.Option(
        "127.0.0.1",
        metavar="ADDRESS",
        help=localized(
            "ほかの PC からも接続できる IP アドレス（暗号化されません）", "IP address that other PCs reach, unencrypted"
        ),
    ),
    runs: Path | None = typer.Option(
        None,
        metavar="DIR",
        help=localized("学習を置くフォルダー（既定は outputs）", "folder of runs (default: outputs)"),
    ),
    models: Path | None = typer.Option(
        None, metavar="DIR", help=localized("モデルのフォルダー（既定は models）", "folder of models (default: models)")
    ),
    data: Path | None = typer.Option(
        None,
        metavar="DIR",
        help=localized("データを置くフォルダー（既定は aift-data）", "folder of uploads (default: aift-data)"),
    ),
    lang: str | None = typer.Option(
        None,
        metavar="ja|en",
        help=localized("画面の言語（既定はブラウザーの言語）", "language (default: the browser's)"),
    ),
    no_open: bool = typer.Option(
        False, "--no-open", help=localized("ブラウザーを開かず、アドレスだけを表示します。", "only print the address")
    ),
    demo: bool = typer.Option(
        False, "--demo", help=localized("同梱のモデルとデータで、ひととおり案内します。", "a tour with what ships")
    ),
) -> int:
    """The server of the page, until Ctrl-C."""
    from importlib.util import find_spec

    if lang not in (None, "ja", "en"):
        raise UsageError(f"--lang {lang}: ja か en を指定してください。", f"--lang {lang}: choose ja or en.")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"aift web には {', '.join(missing)} が必要です。`pip install 'ai-finetuning-toolkit[web]'` してください。",
            f"aift web needs {', '.join(missing)}: `pip install 'ai-finetuning-toolkit[web]'`.",
        )
    from ..web.main import serve, site_in

    if lang:
        os.environ["AIFT_LANG"] = lang  # for what it starts, too
    site = site_in(Path.cwd(), runs=runs, models=models, data=data)
    site.language, site.demo = ("ja" if lang == "ja" else "en") if lang else None, demo
    return serve(site, port=port, listen=listen, browser=not no_open)
