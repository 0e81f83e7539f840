"""aift export gguf, ollama, vllm"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized
from ...messages import argument
from .japanese import App

app = App()
_MODEL = typer.Argument(
    ...,
    help=localized(
        "モデル名、またはモデル・アダプター・学習結果・チェックポイントのフォルダー",
        "model id, or folder of a model, an adapter, a run or a checkpoint",
    ),
)
_FOLDER = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder"))
_TYPE = typer.Option("q8_0", "--type", help="f32 | f16 | bf16 | q8_0")
_CHECKOUT = typer.Option(
    None,
    "--llama-cpp",
    help=localized(
        "llama.cpp のチェックアウト、または llama-cpp-python の .tar.gz（環境変数 LLAMA_CPP でも可）",
        "a checkout of llama.cpp, or llama-cpp-python's .tar.gz (or the variable LLAMA_CPP)",
    ),
)
_BASE = typer.Option(
    "auto",
    help=localized(
        "アダプターを統合するベース（aift merge --base と同じ）",
        "base into which an adapter is merged, as in aift merge --base",
    ),
)


@app.command(
    help=localized(
        "llama.cpp の 1 ファイルにします（トークナイザーの食い違いを直します）。",
        "Writes one file for llama.cpp, with corrected tokenizer metadata.",
    )
)
def gguf(
    model: str = _MODEL,
    out: Path = typer.Option(..., "--out", help=localized("新しいファイル", "a new file")),
    outtype: str = _TYPE,
    llama_cpp: str | None = _CHECKOUT,
    base: str = _BASE,
) -> None:
    """Converts a model, or an adapter merged into its base, to GGUF."""
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...export.gguf import export_gguf, validate_converter, validate_output
    from ...export.source import model_folder

    validate_output(out, outtype)
    converter = validate_converter(
        llama_cpp, f"aift export gguf {argument(model)} --out {argument(out)}", beside=Path(model)
    )
    export_gguf(model_folder(model, base=base), out, converter, outtype=outtype)
    print(out)


@app.command(
    help=localized("GGUF と Modelfile のフォルダーを作ります。", "Writes a folder with a GGUF and its Modelfile.")
)
def ollama(
    model: str = _MODEL,
    out: Path = _FOLDER,
    outtype: str = _TYPE,
    llama_cpp: str | None = _CHECKOUT,
    base: str = _BASE,
) -> None:
    """Writes what `ollama create` reads."""
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...execution.output_folder import validate_new_folder
    from ...export.gguf import validate_converter, validate_type
    from ...export.ollama import export_ollama
    from ...export.source import model_folder

    validate_type(outtype)
    validate_new_folder(out)
    converter = validate_converter(
        llama_cpp, f"aift export ollama {argument(model)} --out {argument(out)}", beside=Path(model)
    )
    written = export_ollama(model_folder(model, base=base), out, converter, outtype=outtype)
    print(localized("次のステップ:", "next steps:"))
    print(f"  ollama create {argument(out.name)} -f {argument(written)}")


@app.command(help=localized("vLLM がそのまま読み込むフォルダーを作ります。", "Writes a folder that vLLM can load."))
def vllm(model: str = _MODEL, out: Path = _FOLDER, base: str = _BASE) -> None:
    """Writes a whole model with tokenizer, chat template and stop tokens."""
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...export.vllm import export_vllm

    export_vllm(model, out, base=base)
    print(localized("次のステップ:", "next steps:"))
    print(f"  vllm serve {argument(out)}")


@app.command(
    help=localized(
        "チェックポイントを、アダプターまたはモデルのフォルダーとして取り出します。",
        "Writes a checkpoint as the folder of an adapter or a model.",
    )
)
def checkpoint(
    name: str = typer.Argument(
        ...,
        metavar="CHECKPOINT",
        help=localized(
            "チェックポイントのフォルダー、または中断した実行のフォルダー",
            "a checkpoint's folder, or an interrupted run's",
        ),
    ),
    out: Path = _FOLDER,
) -> None:
    """Writes what any library loads."""
    from ...export.checkpoint import export_checkpoint

    export_checkpoint(name, out)
    print(localized("次の手順:", "next steps:"))
    print(f"  aift chat {argument(out)}")
