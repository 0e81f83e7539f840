"""What the verbs that answer have in common: how answers are printed, and what is said about their ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer

from ...errors import UsageError, localized
from ...messages import notice, on_one_line, printable

# Options of every verb that asks a model.
MODEL = typer.Argument(
    ...,
    help=localized(
        "モデル名、またはモデル・アダプター・学習結果・チェックポイントのフォルダー",
        "model id, or folder of a model, an adapter, a run or a checkpoint",
    ),
)
SYSTEM = typer.Option(
    None,
    "--system",
    help=localized(
        'システムプロンプト（既定は学習時のもの、"" でなし）', 'system prompt (default: as in training; "" for none)'
    ),
)
BASE = typer.Option(None, "--base", help=localized("アダプターのベースモデル", "the adapter's base"))
BITS = typer.Option(
    None,
    "--bits",
    help=localized(
        "4 か 8: 量子化して読み込みます。16: 量子化しません（省略時、アダプターは学習時と同じ）",
        "4 or 8: load the model quantized; 16: not quantized (default: an adapter's base as in training)",
    ),
)
COMPARE = typer.Option(
    False,
    "--compare",
    help=localized("アダプターなし・ありの回答を並べます", "answers without and with the adapter, side by side"),
)
MAX_NEW_TOKENS = typer.Option(
    512, "--max-new-tokens", help=localized("1 つの回答の最大トークン数", "most tokens of an answer")
)
TEMPERATURE = typer.Option(
    0.7, "--temperature", help=localized("回答のばらつき（0 より大きい値）", "above 0: how varied")
)
TOP_P = typer.Option(0.9, "--top-p", help=localized("上位の確率の合計（0 から 1）", "share of the probability kept"))
TOP_K = typer.Option(50, "--top-k", help=localized("候補のトークン数（0 は制限なし）", "tokens to choose from; 0: all"))
GREEDY = typer.Option(False, "--greedy", help=localized("毎回同じ答えにします", "give the same answer every time"))


def sampling_options(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, *, do_sample: bool, batch_size: int = 1
) -> dict[str, Any]:
    """The options of generate_answers.

    Args:
        batch_size: is checked with them.

    Raises:
        ConfigError: a value that cannot be.
    """
    from ...models.sampling import validate_sampling

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "do_sample": do_sample,
    }
    validate_sampling(**options, batch_size=batch_size)
    return options


def empty_answer() -> str:
    """What stands in the place of an answer without a character."""
    return localized("（空の回答）", "(empty answer)")


def shown_answer(text: str) -> str:
    """An answer as a terminal may get it."""
    return printable(text) if text else empty_answer()


def print_comparison(without: str, with_it: str) -> None:
    """Two answers side by side; long lines fold, no character is left out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for heading in (
        localized("アダプターなし", "without adapter"),
        localized("アダプターあり", "with adapter"),
    ):
        table.add_column(heading, overflow="fold")
    # A tab has no fixed width: a cell would grow beyond its border.
    table.add_row(*(Text(shown_answer(text).expandtabs(4)) for text in (without, with_it)))
    Console().print(table)


def say_cut(ends: Sequence[str], max_new_tokens: int) -> None:
    """One line where answers were cut at the length that was asked for."""
    cut = sum(end == "length" for end in ends)
    if cut:
        notice(
            f"{cut} 件の回答は {max_new_tokens} トークンで切れています（--max-new-tokens で変更できます）。",
            f"{cut} answers are cut at {max_new_tokens} tokens (--max-new-tokens changes that).",
        )


def say_system(trained: str | None, given: str | None) -> None:
    """One line on the system prompt in force.

    Args:
        trained: what the model was trained with.
        given: `--system`.
    """
    system = trained if given is None else given
    if system:
        origin = ("学習時のもの", "as in training") if given is None or given == trained else ("指定", "given")
        notice(
            f"システムプロンプト（{origin[0]}）: {on_one_line(system)}",
            f"system prompt ({origin[1]}): {on_one_line(system)}",
        )
    if trained and given is not None and given != trained:
        notice(
            f"このモデルの学習時のシステムプロンプトは使いません: {on_one_line(trained)}",
            f"not the system prompt that the model was trained with: {on_one_line(trained)}",
        )


def validate_adapter(option: str, has_adapter: bool, model: str) -> None:
    """Refuses an option that needs an adapter.

    Raises:
        UsageError: the model has none.
    """
    if not has_adapter:
        raise UsageError(
            f"{option} にはアダプターが必要ですが、{model} は LoRA アダプターではありません。",
            f"{option} needs an adapter, and {model} is not a LoRA adapter.",
        )
