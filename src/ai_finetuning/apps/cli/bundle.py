"""aift bundle"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import UsageError, localized
from ...messages import argument, on_one_line

_VERIFY = "verify"
_SHOWN = 100  # characters of what a manifest says


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "bundle",
        help=localized(
            "モデルをネットワークのない PC へ持ち込むフォルダーにします。持ち込み先では `aift bundle verify フォルダー` で確かめます。",
            "Writes a model's folder to carry to a PC without a network; there, `aift bundle verify FOLDER` checks it.",
        ),
    )(bundle)


def bundle(
    model: str = typer.Argument(
        ...,
        metavar="MODEL | verify FOLDER",
        help=localized("モデル名・フォルダー、または verify", "model id or folder, or verify"),
    ),
    folder: Path | None = typer.Argument(None, hidden=True),
    out: Path | None = typer.Option(None, "--out", help=localized("新しいフォルダー", "a new folder")),
    gguf: bool = typer.Option(
        False,
        "--gguf",
        help=localized("GGUF への変換プログラムも入れます（77 MB）。", "puts the converter to GGUF beside it (77 MB)"),
    ),
) -> None:
    """Weights, tokenizer, checksums and licence in one folder."""
    if model == _VERIFY and out is None:
        if folder is None:
            raise UsageError(
                "確かめるフォルダーを指定してください: aift bundle verify フォルダー",
                "name the folder to check: aift bundle verify FOLDER",
            )
        _verify(folder)
        return
    if folder is not None or out is None:
        raise UsageError(
            f"書き出し先を --out で指定してください: aift bundle {argument(model)} --out フォルダー",
            f"name the folder to write with --out: aift bundle {argument(model)} --out FOLDER",
        )
    from ...models.named import find_named

    find_named(model)  # refused before torch is imported
    from ...export.bundle import bundle_model, fingerprint

    made = bundle_model(model, out, gguf=gguf)
    size = sum(file.size for file in made.files.values())
    licence = made.licence or localized("不明", "unknown")
    print(
        on_one_line(
            localized(
                f"{out}  {made.model}  {len(made.files)} ファイル  {size / 1e9:.2f} GB  ライセンス: {licence}",
                f"{out}  {made.model}  {len(made.files)} files  {size / 1e9:.2f} GB  licence: {licence}",
            )
        )
    )
    print(localized(f"照合用 SHA-256: {fingerprint(out)}", f"SHA-256 to compare: {fingerprint(out)}"))
    print(localized("持ち込み先での手順:", "next steps, on the other PC:"))
    print(f"  aift bundle verify {argument(out.name)}")
    print(f"  aift train model={argument(out.name)} data.train=...")


def _verify(folder: Path) -> None:
    from ...export.bundle import fingerprint, verify_bundle
    from ...export.llama_cpp import ARCHIVE

    made = verify_bundle(folder)
    size = sum(file.size for file in made.files.values())
    model, created = made.model[:_SHOWN], made.created[:_SHOWN]
    print(
        on_one_line(
            localized(
                f"{folder} は持ち込み元と同じです（{model}、{len(made.files)} ファイル、{size / 1e9:.2f} GB、{created} 作成）。",
                f"{folder} is what was bundled ({model}, {len(made.files)} files, {size / 1e9:.2f} GB, made {created}).",
            )
        )
    )
    print(localized(f"照合用 SHA-256: {fingerprint(folder)}", f"SHA-256 to compare: {fingerprint(folder)}"))
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift train model={argument(folder)} data.train=...")
    print(f"  aift chat {argument(folder)}")
    if ARCHIVE in made.files:
        print(f"  aift export gguf {argument(folder)} --out model.gguf")
