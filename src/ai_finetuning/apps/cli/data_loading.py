"""Data as `aift data` shows it: what training would read, with the rows that it would refuse left out and named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from ...errors import ToolkitError, UsageError, localized

if TYPE_CHECKING:
    from ...config.data import DataConfig
    from ...config.preference import Objective


def load(
    context: typer.Context, file: str, model: str, max_length: int, template: str | None
) -> tuple[Any, Any, Any, list[str]]:
    """(tokenizer, examples, report, lines) of the rows that can be used; the others are among the lines. What is learnt from
    them goes by the setting objective, else by the first row: a pair of answers, a marked answer, or plain data.
    """
    from ...config.load import load_config
    from ...config.section import explicitly_set
    from ...data.files import find_data
    from ...models.hub import validate_name

    find_data(file)
    validate_name(model, weights=False)
    from ...data.prepare import load_examples
    from ...data.prepared import look_into, prepared_folder
    from ...models.tokenizers import load_tokenizer

    config = load_config(None, list(context.args))
    if "max_length" in explicitly_set(config.data):
        raise UsageError(
            f"ここでは data.max_length ではなく、--max-length {config.data.max_length} と指定してください。",
            f"here it is --max-length {config.data.max_length}, not data.max_length.",
        )
    refuses = not config.data.skip_bad_rows
    tokenizer = load_tokenizer(
        model,
        chat_template=template or config.model.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )
    if (folder := prepared_folder(file)) is not None:
        return (tokenizer, *look_into(folder, tokenizer))
    config.data.max_length, config.data.cache, config.data.skip_bad_rows = max_length, False, True
    objective = config.objective if "objective" in explicitly_set(config) else objective_of(file, config.data)
    examples, report, lines = load_examples(file, tokenizer, config.data, objective=objective)
    if objective != "sft":
        lines.insert(0, localized(f"objective: {objective} のデータ", f"data for objective: {objective}"))
    if refuses and report.left_out:
        lines.append(
            localized(
                "これらの行があると学習は始まりません（data.skip_bad_rows で読み飛ばせます）。",
                "Training refuses data with such rows (data.skip_bad_rows skips them).",
            )
        )
    return tokenizer, examples, report, lines


def objective_of(file: str, config: DataConfig) -> Objective:
    """The objective that learns from a file, by its first row that has a format."""
    from ...data.bad_rows import BadRows
    from ...data.doctor import examination
    from ...data.files import open_data

    try:
        _, batches = open_data(file, BadRows(True), columns=config.columns, sheet=config.sheet)
        return examination.objective_of((row for batch in batches for row in batch.rows()), config.columns)
    except ToolkitError:  # which reading it says in full
        pass
    return "sft"
