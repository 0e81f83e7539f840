"""Data as `aift data` shows it: what training would read, with the rows that it would refuse left out and named."""

from __future__ import annotations

from typing import Any

import typer

from ...errors import localized


def load(
    context: typer.Context, file: str, model: str, max_length: int, template: str | None
) -> tuple[Any, Any, Any, list[str]]:
    """(tokenizer, examples, report, lines) of the rows that can be used; the others are among the lines."""
    from ...config.load import load_config
    from ...data.files import find_data
    from ...models.hub import validate_name

    find_data(file)
    validate_name(model, weights=False)
    from ...data.prepare import load_examples
    from ...models.tokenizers import load_tokenizer

    config = load_config(None, list(context.args))
    refuses = not config.data.skip_bad_rows
    tokenizer = load_tokenizer(
        model,
        chat_template=template or config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )
    config.data.max_length, config.data.cache, config.data.skip_bad_rows = max_length, False, True
    examples, report, lines = load_examples(file, tokenizer, config.data)
    if refuses and report.left_out:
        lines.append(
            localized(
                "これらの行があると学習は始まりません（data.skip_bad_rows で読み飛ばせます）。",
                "Training refuses data with such rows (data.skip_bad_rows skips them).",
            )
        )
    return tokenizer, examples, report, lines
