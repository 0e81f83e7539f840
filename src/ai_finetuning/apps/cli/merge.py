"""aift merge"""

from __future__ import annotations

import typer

from ...errors import localized


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("merge", help=localized("アダプターをベースに統合する。", "Merges an adapter into its base."))(merge)


def merge(
    adapter: str = typer.Argument(..., help=localized("アダプターのフォルダー", "the adapter's folder")),
    out: str = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    base: str | None = typer.Option(
        None,
        help=localized("ベースモデル（省略時は学習に使ったもの）", "the base (default: the one it was trained on)"),
    ),
    dtype: str = typer.Option("bfloat16", help="bfloat16 | float16 | float32"),
) -> None:
    """Writes one plain model and compares it, read back from disk, with base plus adapter."""
    from ...training.merging import merge_adapter

    report = merge_adapter(adapter, out, base=base, dtype=dtype)
    print(f"{report.folder}  KL {report.kl:.5f}  top-1 {report.top1:.1%}  {report.size_bytes / 1e6:.1f} MB")
    print(localized("次に試せること:", "what to type next:"))
    print(f"  aift chat {report.folder}")
