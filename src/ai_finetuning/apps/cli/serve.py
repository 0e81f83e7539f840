"""aift serve"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "serve",
        help=localized(
            "OpenAI 互換の API で配信します（この PC からのみ接続できます）。環境変数 AIFT_SERVE_KEY で鍵を設定できます。",
            "Serves an OpenAI-compatible API to this machine only. The variable AIFT_SERVE_KEY sets a key.",
        ),
    )(serve)


def serve(
    model: str = typer.Argument(
        ...,
        help=localized(
            "モデル名、またはモデル・アダプター・学習結果・チェックポイントのフォルダー",
            "model id, or folder of a model, an adapter, a run or a checkpoint",
        ),
    ),
    port: int = typer.Option(8000, help=localized("ポート番号（0 なら空いている番号）", "port; 0 takes a free one")),
    device: str = typer.Option("auto", help="auto | cpu | cuda:0 ..."),
    bits: int | None = typer.Option(
        None, help=localized("4 か 8: 量子化して読み込みます", "4 or 8: load the model quantized")
    ),
    base: str = typer.Option(
        "auto",
        help=localized(
            "アダプターを統合するベース（aift merge --base と同じ）",
            "base into which an adapter is merged, as in aift merge --base",
        ),
    ),
    max_tokens: int = typer.Option(
        4096, "--max-tokens", min=1, help=localized("1 つの回答の最大トークン数", "most tokens of an answer")
    ),
    alias: str | None = typer.Option(
        None,
        help=localized(
            "クライアントに見せるモデル名（既定はフォルダーや実行の名前）",
            "the model's name for clients (default: its folder's)",
        ),
    ),
    key_file: Path | None = typer.Option(
        None,
        help=localized(
            "鍵を書いたファイル（AIFT_SERVE_KEY の代わり）", "file with the key, in place of AIFT_SERVE_KEY"
        ),
    ),
    told: Path | None = typer.Option(
        None,
        "--json",
        help=localized(
            "準備ができたとき、アドレスとモデル名を JSON で書くファイル",
            "file for the address and the model's name as JSON, once it answers",
        ),
    ),
) -> int:
    """Merges an adapter into a cache folder, then runs `transformers serve` pinned to the model."""
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...export.serve import Clients
    from ...export.serve import serve as run_server

    clients = Clients(alias, max_tokens, key_file, told)
    return run_server(model, port=port, device=device, bits=bits, base=base, clients=clients)
