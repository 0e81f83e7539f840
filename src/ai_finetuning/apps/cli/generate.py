"""aift generate"""

from __future__ import annotations

import sys
from typing import Any

import typer

from ...errors import localized
from ...messages import notice, printable
from .answers import print_comparison, say_cut, say_system, shown_answer, validate_adapter


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "generate", help=localized("質問を渡して回答を表示します。", "Answers questions and prints the answers.")
    )(generate)


def generate(
    model: str = typer.Argument(
        ...,
        help=localized(
            "モデル名、またはモデル・アダプター・学習結果・チェックポイントのフォルダー",
            "model id, or folder of a model, an adapter, a run or a checkpoint",
        ),
    ),
    prompts: list[str] = typer.Argument(..., help=localized("質問（複数可）", "questions, one or more")),
    input_text: str | None = typer.Option(
        None, "--input", help=localized("質問に添える文章", "material for the questions")
    ),
    system: str | None = typer.Option(
        None,
        help=localized(
            'システムプロンプト（既定は学習時のもの、"" でなし）',
            'system prompt (default: as in training; "" for none)',
        ),
    ),
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
    max_new_tokens: int = typer.Option(512, help=localized("1 つの回答の最大トークン数", "most tokens of an answer")),
    temperature: float = typer.Option(0.7, help=localized("回答のばらつき（0 より大きい値）", "above 0: how varied")),
    top_p: float = typer.Option(0.9, help=localized("上位の確率の合計（0 から 1）", "share of the probability kept")),
    top_k: int = typer.Option(50, help=localized("候補のトークン数（0 は制限なし）", "tokens to choose from; 0: all")),
    greedy: bool = typer.Option(
        False, "--greedy", help=localized("毎回同じ答えにします", "give the same answer every time")
    ),
    seed: int | None = typer.Option(None, help=localized("乱数のシード", "seed of the random numbers")),
) -> None:
    """Prints the answer; of several questions each with its question, of --compare both answers."""
    from ...models.sampling import validate_sampling

    options: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "do_sample": not greedy,
    }
    validate_sampling(**options)
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...inference import session
    from ...japanese.default_system import system_turn
    from ...japanese.prompts import user_turn
    from ...models.generation import generate_answers, say_ends

    opened = session.open_model(model, base=base, bits=bits)
    if compare:
        validate_adapter("--compare", opened.has_adapter, model)
    say_system(opened.system, system)
    head = system_turn(opened.tokenizer, system)
    conversations = [[*head, user_turn(prompt, input_text)] for prompt in prompts]
    if compare:
        without, answers = session.compare(opened, conversations, seed=seed, **options)
    else:
        without = []
        answers = generate_answers(opened.model, opened.tokenizer, conversations, seed=seed, **options)
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True), start=1):
        if len(prompts) > 1:
            print("─" * 40 if number > 1 else "", end="\n" if number > 1 else "")
            print(
                localized(f"質問 {number}/{len(prompts)}: ", f"question {number}/{len(prompts)}: ") + printable(prompt)
            )
        if compare:
            print_comparison(without[number - 1].text, answer.text)
        elif len(prompts) > 1 or sys.stdout.isatty():
            print(shown_answer(answer.text))
        else:  # for programs: the answer and nothing else
            print(printable(answer.text))
            if not answer.text:
                notice("回答は空でした。", "the answer is empty.")
    say_ends(opened.model, [*without, *answers], max_new_tokens)
    say_cut([answer.end for answer in (*without, *answers)], max_new_tokens)
