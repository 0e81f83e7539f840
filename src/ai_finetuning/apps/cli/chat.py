"""aift chat"""

from __future__ import annotations

import sys
from typing import Any

import typer

from ...errors import localized
from ...messages import printable


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "chat",
        help=localized("モデルと対話します（/help でコマンド一覧）。", "Talks with a model (/help lists commands)."),
    )(chat)


def chat(
    model: str = typer.Argument(
        ...,
        help=localized(
            "モデル名、またはモデル・アダプター・学習結果・チェックポイントのフォルダー",
            "model id, or folder of a model, an adapter, a run or a checkpoint",
        ),
    ),
    system: str | None = typer.Option(None, help=localized("システムプロンプト", "system prompt")),
    base: str | None = typer.Option(None, help=localized("アダプターのベースモデル", "the adapter's base")),
    bits: int | None = typer.Option(
        None,
        help=localized(
            "4 か 8: 量子化して読み込みます。16: 量子化しません（省略時、アダプターは学習時と同じ）",
            "4 or 8: load the model quantized; 16: not quantized (default: an adapter's base as in training)",
        ),
    ),
    compare: bool = typer.Option(
        False,
        "--compare",
        help=localized("アダプターなし・ありの回答を並べます", "answers without and with the adapter, side by side"),
    ),
    max_new_tokens: int = typer.Option(512),
    temperature: float = typer.Option(0.7),
    greedy: bool = typer.Option(False, "--greedy"),
) -> None:
    """A conversation in the terminal; with a pipe, every line is a question."""
    from ...models.sampling import validate_sampling

    validate_sampling(max_new_tokens=max_new_tokens, temperature=temperature, do_sample=not greedy)
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...inference.session import Chat, open_model

    opened = open_model(model, base=base, bits=bits)
    talk = Chat(opened, system)
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "do_sample": not greedy}
    state = {"compare": compare and opened.has_adapter, "adapter": True}
    while True:
        try:
            line = input(localized("あなた> ", "you> ") if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if line.startswith("/"):
            if not _command(line, talk, state):
                return
        elif line:
            _answer(talk, line, state, options)


def _command(line: str, talk: Any, state: dict[str, bool]) -> bool:
    """Carries out a /command; False ends the conversation."""
    name = line.split()[0]
    if name in ("/quit", "/exit", "/bye"):
        return False
    if name == "/reset":
        talk.history.clear()
        print(localized("履歴を消しました。", "history cleared."))
    elif name in ("/compare", "/adapter") and talk.opened.has_adapter:
        key = name[1:]
        state[key] = not state[key]
        print(f"{key}: {'on' if state[key] else 'off'}")
    else:
        print(
            localized(
                "/reset 履歴を消す  /adapter アダプターの切り替え  /compare 並べて表示  /quit 終了",
                "/reset clears history  /adapter switches the adapter  /compare shows both  /quit ends",
            )
        )
    return True


def _answer(talk: Any, line: str, state: dict[str, bool], options: dict[str, Any]) -> None:
    if state["compare"]:
        from rich.console import Console
        from rich.table import Table

        without, with_it = talk.compare(line, **options)
        table = Table(localized("アダプターなし", "without adapter"), localized("アダプターあり", "with adapter"))
        table.add_row(printable(without), printable(with_it))
        Console().print(table, markup=False)
        return
    with talk.opened.adapter(state["adapter"]):
        for piece in talk.stream(line, **options):
            print(printable(piece), end="", flush=True)
    print()
