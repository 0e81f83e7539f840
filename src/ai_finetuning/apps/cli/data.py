"""aift data show, aift data stats"""

from __future__ import annotations

from typing import Any

import typer

from ...errors import localized
from ...labels import IGNORED
from .japanese import App

app = App()
_FILE = typer.Argument(..., help=localized("データのファイル", "the data's file"))
_MODEL = typer.Option(..., "--model", help=localized("モデル名かフォルダー", "model id or folder"))
_LENGTH = typer.Option(512, "--max-length")
_TEMPLATE = typer.Option(
    None, "--chat-template", help=localized("テンプレート名・ファイル", "a template's name or file")
)


def _load(file: str, model: str, max_length: int, template: str | None) -> tuple[Any, Any, Any, list[str]]:
    from ...config.data import DataConfig
    from ...data.prepare import load_examples
    from ...models.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(model, chat_template=template)
    config = DataConfig(max_length=max_length, cache=False)
    return tokenizer, *load_examples(file, tokenizer, config)


@app.command(
    help=localized(
        "1 行のトークンと、学習対象トークンを色で示します。", "Shows the tokens of a row, with label tokens in colour."
    )
)
def show(
    file: str = _FILE,
    model: str = _MODEL,
    row: int = typer.Option(1, "--row", help=localized("何行目か（1 から）", "which row, from 1")),
    max_length: int = _LENGTH,
    chat_template: str | None = _TEMPLATE,
    ids: bool = typer.Option(False, "--ids", help=localized("ID も表示します", "show ids too")),
) -> None:
    """The tokens of one row as the model gets them."""
    from rich.console import Console
    from rich.text import Text

    from ...data.stats import shown_tokens
    from ...errors import UsageError

    tokenizer, examples, _, lines = _load(file, model, max_length, chat_template)
    if not 1 <= row <= len(examples):
        raise UsageError(
            f"--row が {row} です。1 から {len(examples)} にしてください。",
            f"--row is {row}; it must be 1 to {len(examples)}.",
        )
    example = examples[row - 1]
    for line in lines:
        print(line)
    tokens = shown_tokens(example, tokenizer)
    text = Text()
    for token in tokens:
        colour = "bold green" if token.live else "dim"
        written = token.text.replace("\n", "⏎\n") + (f"[{token.id}]" if ids else "")
        text.append(
            f"⟨{written}⟩" if token.special else written, style=colour + (" underline" if token.special else "")
        )
        text.append("|", style="dim")
    console = Console()
    console.print(text)
    live = sum(token.live for token in tokens)
    names = {"bos": tokenizer.bos_token, "eos": tokenizer.eos_token, "pad": tokenizer.pad_token}
    print(
        localized(
            f"{example.source}: {len(tokens)} トークン、緑（学習対象トークン）{live}。⟨⟩ は特殊トークン。{names}",
            f"{example.source}: {len(tokens)} tokens, {live} of them label tokens (green); ⟨⟩ are special tokens. "
            f"{names}",
        )
    )
    if not console.is_terminal:
        print("loss: " + "".join("1" if token.live else "0" for token in tokens))


@app.command(
    help=localized(
        "行数、トークン数、長さの分布、切り詰められる量を表示します。",
        "Shows rows, tokens, the distribution of lengths, and how much would be truncated.",
    )
)
def stats(
    file: str = _FILE, model: str = _MODEL, max_length: int = _LENGTH, chat_template: str | None = _TEMPLATE
) -> None:
    """The data in numbers, for one model."""
    from ...data.stats import histogram, percentile

    _, examples, report, lines = _load(file, model, 2**30, chat_template)
    for line in lines:
        print(line)
    if report.vocabulary.survives:
        print(localized("すべての行がトークンから元どおりに戻ります。", "every row survives encoding and decoding"))
    lengths = [len(item) for item in examples]
    print(
        localized(
            f"1 トークンあたりの文字数: {report.characters_per_token:.2f}",
            f"characters per token: {report.characters_per_token:.2f}",
        )
    )
    print("tokens: " + "  ".join(f"p{share} {percentile(lengths, share / 100)}" for share in (50, 90, 95, 99, 100)))
    most = max(count for *_, count in histogram(lengths))
    for low, high, count in histogram(lengths):
        print(f"{low:>6}-{high:<6} {count:>7}  {'#' * round(40 * count / most)}")
    over = [item for item in examples if len(item) > max_length]
    lost = sum(int((item.labels[max_length:] != IGNORED).sum()) for item in over)
    print(
        localized(
            f"max_length {max_length} を超える行: {len(over)}（{len(over) / len(examples):.1%}）、失われる学習対象トークン "
            f"{lost / max(1, report.label_tokens):.1%}",
            f"rows over max_length {max_length}: {len(over)} ({len(over) / len(examples):.1%}); label tokens cut "
            f"{lost / max(1, report.label_tokens):.1%}",
        )
    )
