"""aift tokenizer train"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized
from ...messages import argument
from .japanese import App

app = App()


@app.callback()
def tokenizer() -> None:
    """A group, so that its verb is typed."""


@app.command(
    help=localized(
        "文章から sentencepiece（unigram）のトークナイザーを作ります。",
        "Makes a sentencepiece (unigram) tokenizer from texts.",
    )
)
def train(
    files: list[str] = typer.Argument(..., help=localized("文章のファイル", "files of text")),
    out: Path = typer.Option(..., "--out", help=localized("新しいフォルダー", "a new folder")),
    vocabulary: int = typer.Option(8192, "--vocab", help=localized("語彙数", "vocabulary size")),
    character_coverage: float = typer.Option(
        0.9995, "--coverage", help=localized("文字の被覆率", "share of characters that the vocabulary covers")
    ),
) -> None:
    """Writes tokenizer.model and tokenizer.json that tokenize alike, with a chat template."""
    from ...data.files import find_data

    for file in files:
        find_data(file)
    from ...data.messages import PlainText, messages_of
    from ...data.sources import load_samples
    from ...execution.output_folder import new_folder, validate_new_folder
    from ...models.tokenizer_training import train_tokenizer

    validate_new_folder(out)
    samples, report = load_samples([Path(file) for file in files])
    for line in report.lines():
        print(line)
    texts = [
        sample.text if isinstance(sample, PlainText) else "\n".join(item.content for item in messages_of(sample))
        for sample in samples
    ]
    with new_folder(out) as staging:
        train_tokenizer(texts, staging, vocabulary=vocabulary, character_coverage=character_coverage)
    print(
        localized(
            f"トークナイザーを {out} に作りました（{vocabulary} 個）。",
            f"wrote a tokenizer with {vocabulary} tokens: {out}",
        )
    )
    print(localized("次のステップ:", "next steps:"))
    print(f"  aift train method=pretrain model={argument(out)} data.train=FILE data.on_long=split data.packing=true")
