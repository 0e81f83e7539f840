"""aift data show, stats and formats; doctor, prepare and split are in files of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ...errors import localized
from ...labels import IGNORED
from ...messages import printable
from . import data_doctor, data_glance, data_prepare, data_questions, data_split, data_table
from .data_loading import load
from .japanese import App
from .json_out import WritesJson, json_option, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from ...data.example import Example
    from ...data.stats import ShownToken

app = App()
_FILE = typer.Argument(..., help=localized("データのファイル", "the data's file"))
_MODEL = typer.Option(
    ...,
    "--model",
    help=localized(
        "モデル名、またはモデル・アダプター・学習結果のフォルダー",
        "model id, or folder of a model, an adapter or a run",
    ),
)
_LENGTH = typer.Option(
    512, "--max-length", help=localized("1 行の最大トークン数。", "maximum length of a row, in tokens.")
)
_TEMPLATE = typer.Option(
    None, "--chat-template", help=localized("テンプレート名・ファイル", "a template's name or file")
)
# Settings as `aift train` takes them follow the file.
_SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}
app.command(context_settings=_SETTINGS, help=data_doctor.HELP)(data_doctor.doctor)
app.command(cls=WritesJson, context_settings=_SETTINGS, help=data_split.HELP)(data_split.split)
app.command(help=data_prepare.HELP)(data_prepare.prepare)
app.command(cls=WritesJson, context_settings=_SETTINGS, hidden=True, help=data_table.HELP)(data_table.table)
app.command("glance", cls=WritesJson, context_settings=_SETTINGS, hidden=True, help=data_glance.HELP)(data_glance.look)
app.command(cls=WritesJson, hidden=True, help=data_questions.HELP)(data_questions.questions)


def _row_number(row: str, rows: int) -> int:
    """The row that --row names, from 1; `last` and negative numbers count from the end.

    Raises:
        UsageError: no number, or no such row.
    """
    from ...errors import UsageError

    number = {"last": rows}.get(row, int(row) if row.lstrip("-").isdigit() else 0)
    number += rows + 1 if number < 0 else 0
    if not 1 <= number <= rows:
        raise UsageError(
            f"--row が {row} です。1 から {rows}、または last（-1）にしてください。",
            f"--row is {row}; it must be 1 to {rows}, or last (-1).",
        )
    return number


@app.command(
    cls=WritesJson,
    context_settings=_SETTINGS,
    help=localized(
        "1 行のトークンと、学習対象トークンを色で示します。data.* の設定も書けます（例: data.columns={...}）。",
        "Shows the tokens of a row, with label tokens in colour. Settings may follow, such as data.columns={...}.",
    ),
)
def show(
    context: typer.Context,
    file: str = _FILE,
    model: str = _MODEL,
    row: str = typer.Option(
        "1",
        "--row",
        help=localized(
            "何行目か（1 から、last、-1。--json では all も）", "which row: from 1, last, -1; with --json all too"
        ),
    ),
    max_length: int = _LENGTH,
    chat_template: str | None = _TEMPLATE,
    ids: bool = typer.Option(False, "--ids", help=localized("ID も表示します", "show ids too")),
    json_file: str | None = json_option("トークン", "the tokens"),
) -> None:
    """The tokens of one row as the model gets them."""
    from rich.console import Console

    tokenizer, examples, _, lines = load(context, file, model, max_length, chat_template)
    if json_file is not None:
        chosen = range(len(examples)) if row == "all" else [_row_number(row, len(examples)) - 1]
        write_json(json_file, {"lines": lines, "rows": [_as_json(examples[index], tokenizer) for index in chosen]})
        return
    example = examples[_row_number(row, len(examples)) - 1]
    for line in lines:
        print(printable(line))
    console = Console()
    parts = _parts(example, tokenizer)
    for title, tokens in zip(_titles(example), parts, strict=True):
        if title:
            print(title)
        _draw(console, tokens, ids)
    tokens = [token for part in parts for token in part]
    live = sum(token.live for token in tokens)
    ends = (("bos", tokenizer.bos_token), ("eos", tokenizer.eos_token), ("pad", tokenizer.pad_token))
    names = "  ".join(f"{part} {printable(token)}" for part, token in ends if token)
    green = (
        localized("緑（学習対象）", "green (label tokens)")
        if console.is_terminal
        else localized("学習対象", "label tokens")
    )
    source = printable(str(example.source))
    print(
        localized(
            f"{source}: {len(tokens)} トークン、{green} {live}。⟨⟩ は特殊トークン（{names}）",
            f"{source}: {len(tokens)} tokens, {green} {live}; ⟨⟩ are special tokens ({names})",
        )
    )
    if not console.is_terminal:
        print("loss: " + "|".join("".join("1" if token.live else "0" for token in part) for part in parts))


def _parts(example: Example, tokenizer: Any) -> list[list[ShownToken]]:
    """The tokens of a row: of a pair those that both answers share, and the rest of each; else one part."""
    from ...data.stats import shown_tokens, wholes

    parts = [shown_tokens(whole, tokenizer) for whole in wholes(example)]
    if not example.fork:
        return parts
    first = example.fork[0]
    return [parts[0][:first], parts[0][first:], parts[1][first:]]


def _as_json(example: Example, tokenizer: Any) -> dict[str, Any]:
    """A row for programs: `source`, `tokens`, `label_tokens`, and `parts`, each with its `name` (row; shared, chosen,
    rejected of a pair; good, bad of a marked answer) and `tokens`, each [id, text, live, special].
    """
    names = (
        {-1: ["bad"], 0: ["row"], 1: ["good"]}[example.mark] if not example.fork else ["shared", "chosen", "rejected"]
    )
    parts = _parts(example, tokenizer)
    return {
        "source": example.source,
        "tokens": sum(map(len, parts)),
        "label_tokens": sum(token.live for part in parts for token in part),
        "parts": [
            {"name": name, "tokens": [[token.id, token.text, token.live, token.special] for token in part]}
            for name, part in zip(names, parts, strict=True)
        ],
    }


def _titles(example: Example) -> list[str]:
    """What stands above each part of a row: of a pair what both answers share, and the rest of each; else one part."""
    if example.mark:
        good = example.mark > 0
        return [
            localized(
                f"── {'良い' if good else '悪い'}回答（objective: kto）",
                f"── a {'good' if good else 'bad'} answer (objective: kto)",
            )
        ]
    if not example.fork:
        return [""]
    prefix, chosen, rejected = example.fork
    return [
        localized(f"── 共通（{prefix} トークン）", f"── shared ({prefix} tokens)"),
        localized(f"── 良い回答（{chosen} トークン）", f"── chosen ({chosen} tokens)"),
        localized(f"── 悪い回答（{rejected} トークン）", f"── rejected ({rejected} tokens)"),
    ]


def _draw(console: Console, tokens: list[ShownToken], ids: bool) -> None:
    """Tokens in colour, with bars between."""
    from rich.text import Text

    text = Text()
    for token in tokens:
        colour = "bold green" if token.live else "dim"
        written = printable(token.text).replace("\n", "⏎\n") + (f"[{token.id}]" if ids else "")
        text.append(
            f"⟨{written}⟩" if token.special else written, style=colour + (" underline" if token.special else "")
        )
        text.append("|", style="dim")
    console.print(text)


@app.command(
    cls=WritesJson,
    context_settings=_SETTINGS,
    help=localized(
        "行数、トークン数、長さの分布、切り詰められる量を表示します。",
        "Shows rows, tokens, the distribution of lengths, and how much would be truncated.",
    ),
)
def stats(
    context: typer.Context,
    file: str = _FILE,
    model: str = _MODEL,
    max_length: int = _LENGTH,
    chat_template: str | None = _TEMPLATE,
    json_file: str | None = json_option("数値", "the numbers"),
) -> None:
    """The data in numbers, for one model."""
    from ...data.stats import histogram, percentile, wholes

    _, examples, report, lines = load(context, file, model, 2**30, chat_template)
    lengths = [max(map(len, wholes(item))) for item in examples]  # max_length holds for each answer with its prompt
    over = [item for item, length in zip(examples, lengths, strict=True) if length > max_length]
    lost = sum(int((whole.labels[max_length:] != IGNORED).sum()) for item in over for whole in wholes(item))
    if json_file is not None:
        numbers = {
            "rows": len(examples),
            "label_tokens": report.label_tokens,
            "characters_per_token": report.characters_per_token,
            "percentiles": {str(share): percentile(lengths, share / 100) for share in (50, 90, 95, 99, 100)},
            "histogram": [list(item) for item in histogram(lengths)],
            "max_length": max_length,
            "rows_over": len(over),
            "label_tokens_lost": lost,
        }
        write_json(json_file, {"lines": lines, **numbers})
        return
    for line in lines:
        print(printable(line))
    if report.vocabulary.survives:
        print(localized("すべての行がトークンから元どおりに戻ります。", "every row survives encoding and decoding"))
    print(
        localized(
            f"1 トークンあたりの文字数: {report.characters_per_token:.2f}",
            f"characters per token: {report.characters_per_token:.2f}",
        )
    )
    middle, *most_of, longest = (percentile(lengths, share / 100) for share in (50, 90, 95, 99, 100))
    parts = list(zip((90, 95, 99), most_of, strict=True))
    print(
        localized(
            f"トークン長: 中央値 {middle}、"
            + "、".join(f"{share}% 点 {at}" for share, at in parts)
            + f"、最大 {longest}",
            f"tokens: median {middle}, " + ", ".join(f"{share} % {at}" for share, at in parts) + f", longest {longest}",
        )
    )
    most = max(count for *_, count in histogram(lengths))
    for low, high, count in histogram(lengths):
        print(f"{low:>6}-{high:<6} {count:>7}  {'#' * round(40 * count / most)}")
    print(
        localized(
            f"max_length {max_length} を超える行: {len(over)}（{len(over) / len(examples):.1%}）、失われる学習対象トークン "
            f"{lost / max(1, report.label_tokens):.1%}",
            f"rows over max_length {max_length}: {len(over)} ({len(over) / len(examples):.1%}); label tokens cut "
            f"{lost / max(1, report.label_tokens):.1%}",
        )
    )


@app.command(
    help=localized(
        "読めるファイルと行の形式を、例とともに表示します。",
        "Lists the files and row formats that can be read, with examples.",
    )
)
def formats() -> None:
    """Every kind of file and every format of rows, from the tables that the reader goes by."""
    from ...data.doctor.passages import JUDGED
    from ...data.files import KINDS
    from ...data.formats import FORMATS

    print(localized("ファイル", "Files"))
    for endings, (ja, en) in KINDS.items():
        print(f"  {endings}\n      {localized(ja, en)}")
    for which, ja, en in (
        ("trained", "学習する行の形式", "Rows that are trained on"),
        ("judged", "objective: preference と kto で学習する行の形式", "Rows for objective: preference and kto"),
        ("refused", "学習しない行の形式", "Rows that are refused"),
    ):
        print("\n" + localized(ja, en))
        for item in FORMATS:
            if which == ("trained" if item.build is not None else "judged" if item.key in JUDGED else "refused"):
                print(f"  {item.key}\n      {localized(item.ja, item.en)}\n      {item.example}")
