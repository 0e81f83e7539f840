"""aift quantize"""

from __future__ import annotations

import typer

from ...errors import localized
from ...messages import argument


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "quantize",
        help=localized(
            "8bit・4bit のコピーを作り、読み直して確かめます。",
            "Makes an 8- or 4-bit copy and verifies it by reloading.",
        ),
    )(quantize)


def quantize(
    model: str = typer.Argument(
        ..., help=localized("モデル名、またはモデル・学習結果のフォルダー", "model id, or folder of a model or a run")
    ),
    bits: int = typer.Option(..., "--bits", help="8 | 4"),
    out: str = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    backend: str = typer.Option("bitsandbytes", help="bitsandbytes | torchao"),
    quant_type: str | None = typer.Option(
        None,
        "--type",
        help="bitsandbytes 8: int8; 4: nf4 (default), fp4. torchao 8: int8 (default), int8-dynamic; 4: int4 (CUDA)",
    ),
    dtype: str = typer.Option(
        "auto",
        help=localized(
            "量子化しない部分と計算の型: auto | bfloat16 | float16 | float32",
            "dtype of unquantized weights and of computation: auto | bfloat16 | float16 | float32",
        ),
    ),
    double_quant: bool | None = typer.Option(
        None,
        "--double-quant/--no-double-quant",
        help=localized("nf4・fp4: スケールも量子化", "nf4, fp4: scales too (default)"),
    ),
    threshold: float | None = typer.Option(
        None, help=localized("bitsandbytes int8: 外れ値のしきい値（6.0）", "bitsandbytes int8: outlier threshold (6.0)")
    ),
) -> None:
    """Writes a copy that plain transformers loads."""
    from ...models.hub import validate_name
    from ...models.named import refusal

    named = validate_name(model)
    if named.kind == "adapter":
        raise refusal(named)
    from ...convert.quantize import QuantizationOptimizer

    asked = {"bnb_4bit_use_double_quant": double_quant, "llm_int8_threshold": threshold}
    settings = {name: value for name, value in asked.items() if value is not None}
    optimizer = QuantizationOptimizer(model)
    optimizer.quantize(out, bits=bits, backend=backend, quant_type=quant_type, compute_dtype=dtype, settings=settings)
    report = optimizer.report
    assert report is not None
    print(
        localized(
            f"{report.folder}  {report.method.name}  量子化した層 {report.modules}  ディスク {report.size_bytes / 1e6:.1f} "
            f"MB  メモリー {report.memory_bytes / 1e6:.1f} MB",
            f"{report.folder}  {report.method.name}  modules {report.modules}  disk {report.size_bytes / 1e6:.1f} "
            f"MB  memory {report.memory_bytes / 1e6:.1f} MB",
        )
    )
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift bench {argument(model)} {argument(report.folder)}")
    print(f"  aift chat {argument(report.folder)}")
