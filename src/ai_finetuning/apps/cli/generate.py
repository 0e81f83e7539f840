"""aift generate"""

from __future__ import annotations

import sys

import typer

from ...errors import localized
from ...messages import notice, printable
from .answers import (
    BASE,
    BITS,
    COMPARE,
    GREEDY,
    MAX_NEW_TOKENS,
    MODEL,
    SYSTEM,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    print_comparison,
    sampling_options,
    say_cut,
    say_system,
    shown_answer,
    validate_adapter,
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "generate", help=localized("質問を渡して回答を表示します。", "Answers questions and prints the answers.")
    )(generate)


def generate(
    model: str = MODEL,
    prompts: list[str] = typer.Argument(..., help=localized("質問（複数可）", "questions, one or more")),
    input_text: str | None = typer.Option(
        None, "--input", help=localized("質問に添える文章", "material for the questions")
    ),
    system: str | None = SYSTEM,
    base: str | None = BASE,
    bits: int | None = BITS,
    compare: bool = COMPARE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    temperature: float = TEMPERATURE,
    top_p: float = TOP_P,
    top_k: int = TOP_K,
    greedy: bool = GREEDY,
    seed: int | None = typer.Option(None, help=localized("乱数のシード", "seed of the random numbers")),
) -> None:
    """Prints the answer; of several questions each with its question, of --compare both answers."""
    options = sampling_options(max_new_tokens, temperature, top_p, top_k, do_sample=not greedy)
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
