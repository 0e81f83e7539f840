"""aift bench"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized
from ...messages import printable

_GRADES = {
    "close": ("元のモデルとほぼ同じです", "close to the original"),
    "usable": ("実用になる差です", "usable: it differs, within the limits"),
    "poor": ("差が大きすぎます", "poor: it differs beyond the limits"),
    "not quantized": ("量子化されていません", "not quantized: nothing is smaller"),
}


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "bench",
        help=localized(
            "量子化前後の速さ・メモリー・品質を比べます。",
            "Compares speed, memory and quality before and after quantization.",
        ),
    )(bench)


def bench(
    model: str = typer.Argument(
        ..., help=localized("元のモデル（アダプターも可）", "the original model, or an adapter")
    ),
    quantized: str = typer.Argument(..., help=localized("量子化したモデル", "the quantized model")),
    data: str | None = typer.Option(
        None,
        "--data",
        help=localized("測る文章（省略時は同梱の文章）", "text to measure on (default: embedded texts)"),
    ),
    rows: int = typer.Option(32, help=localized("使う行数", "number of rows to use")),
    max_length: int = typer.Option(512, help=localized("1 行の最大トークン数", "maximum number of tokens in a row")),
    runs: int = typer.Option(20, help=localized("測る回数", "number of timed prefill passes for each model")),
    out: Path | None = typer.Option(
        None, "--out", help=localized("JSON・Markdown・図の出力先", "folder for the JSON, the Markdown and the picture")
    ),
) -> None:
    """Prints the comparison; with --out also writes it as benchmark.json, benchmark.md and benchmark.png."""
    from ...models.hub import validate_name

    for name in (model, quantized):
        validate_name(name)
    from ...evaluation.quantization_benchmark import benchmark_inputs, compare_models
    from ...evaluation.quantization_report import markdown, write_report
    from ...inference.session import load_weights
    from ...models.tokenizers import load_tokenizer

    inputs = benchmark_inputs(data, load_tokenizer(model), rows=rows, max_length=max_length)
    obtained = compare_models(load_weights(model), load_weights(quantized), inputs, num_runs=runs)
    print(printable(markdown(obtained)))
    grade = obtained["verdict"]["grade"]
    print(localized(f"判定: {grade}（{_GRADES[grade][0]}）", f"verdict: {_GRADES[grade][1]}"))
    if out is not None:
        for path in write_report(obtained, out):
            print(path)
