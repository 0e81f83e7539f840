"""aift generate"""

from __future__ import annotations

import typer

from ...errors import localized
from ...messages import printable


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
    prompts: list[str] = typer.Argument(..., help=localized("指示（複数可）", "instructions, one or more")),
    input_text: str | None = typer.Option(
        None, "--input", help=localized("指示に添える文章", "material for the instruction")
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
    max_new_tokens: int = typer.Option(512),
    temperature: float = typer.Option(0.7),
    top_p: float = typer.Option(0.9),
    top_k: int = typer.Option(50),
    greedy: bool = typer.Option(
        False, "--greedy", help=localized("毎回同じ答えにします", "give the same answer every time")
    ),
    seed: int | None = typer.Option(None),
) -> None:
    """Prints the answers, one block for each instruction."""
    from ...models.sampling import validate_sampling

    validate_sampling(
        max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k, do_sample=not greedy
    )
    from ...models.hub import validate_name

    validate_name(model, base)
    from ...inference.session import open_model
    from ...japanese.prompts import user_turn
    from ...models.generation import generate_text

    opened = open_model(model, base=base, bits=bits)
    head = [{"role": "system", "content": system}] if system else []
    conversations = [[*head, user_turn(prompt, input_text)] for prompt in prompts]
    answers = generate_text(
        opened.model,
        opened.tokenizer,
        conversations,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        do_sample=not greedy,
        seed=seed,
    )
    for answer in answers:
        print(printable(answer))
