"""aift merge"""

from __future__ import annotations

from dataclasses import asdict

import typer

from ...errors import localized
from ...messages import argument
from .json_out import WritesJson, json_option, write_json


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "merge", cls=WritesJson, help=localized("アダプターをベースに統合します。", "Merges an adapter into its base.")
    )(merge)


def merge(
    adapter: str = typer.Argument(
        ...,
        help=localized(
            "アダプター・学習結果・チェックポイントのフォルダー", "folder of an adapter, a run or a checkpoint"
        ),
    ),
    out: str = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    base: str = typer.Option(
        "auto",
        help=localized(
            "auto | original（もとの 16bit） | dequantized（量子化を 16bit に戻したもの） | 16bit モデルの名前",
            "auto | original (the 16-bit model) | dequantized (the quantized base turned to 16 bit) | name of a "
            "16-bit model",
        ),
    ),
    bits: int | None = typer.Option(
        None,
        help=localized(
            "4 か 8: 量子化して読み込んだベースで学習したアダプター（このツールで学習したものは自動）",
            "4 or 8: the adapter was trained on a base loaded in this many bits (automatic for adapters of this "
            "toolkit)",
        ),
    ),
    dtype: str = typer.Option("bfloat16", help="bfloat16 | float16 | float32"),
    json_file: str | None = json_option("測った差", "what was measured"),
) -> None:
    """Writes one plain model and compares it, read back from disk, with base plus adapter."""
    from ...models.hub import validate_name

    validate_name(adapter, base)
    from ...convert.merge import MAX_KL, MIN_TOP1, merge_adapter

    report = merge_adapter(adapter, out, base=base, bits=bits, dtype=dtype)
    if json_file is not None:
        told = asdict(report) | {"folder": str(report.folder), "limits": {"kl": MAX_KL, "top1": MIN_TOP1}}
        write_json(json_file, told)
        return
    for source, close in report.measured.items():
        print(f"  {source}: KL {close.kl:.6f}  top-1 {close.top1:.1%}")
    print(
        f"{report.folder}  {report.source}  KL {report.kl:.5f}  top-1 {report.top1:.1%}  "
        f"{report.size_bytes / 1e6:.1f} MB"
    )
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift chat {argument(report.folder)}")
