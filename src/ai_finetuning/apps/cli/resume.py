"""aift resume"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized
from .train import ALLOW_CHANGED, RESTART, TABLE, VerbWithSettings, no_folder, resume_folder, with_flags


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "resume",
        cls=_Resume,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        help=localized(
            "中断した学習を続きから再開します。必要なのは実行のフォルダーだけです。完了した実行は、エポックを増やして続けられます。"
            "例: aift resume outputs/faq ／ aift resume outputs/faq num_epochs=5。フォルダーを書かなければ、ここにある中断した実行を表示します。",
            "Goes on with an interrupted run; its folder is all that is needed. A finished run goes on for more epochs. "
            "Examples: aift resume outputs/faq, aift resume outputs/faq num_epochs=5. Without a folder: the interrupted "
            "runs that are here.",
        ),
    )(resume)


class _Resume(VerbWithSettings):
    PIECES = (localized("フォルダー", "FOLDER"), "[key=value ...]")


def resume(
    context: typer.Context,
    dry_run: bool = typer.Option(
        False,
        "--dry-run",
        help=localized(
            "どのステップから続くかと計画だけを表示し、何も書き込みません。",
            "Print from which step it goes on, and the plan; write nothing.",
        ),
    ),
    restart: bool = RESTART,
    allow_changed: bool = ALLOW_CHANGED,
) -> None:
    """Goes on with a run."""
    arguments = list(context.args)
    if not arguments or arguments[0].startswith("-") or "=" in arguments[0]:
        raise no_folder()
    flags = with_flags(restart=restart, allow_changed=allow_changed)
    resume_folder(Path(arguments[0]), [*arguments[1:], *flags], plan_as=TABLE if dry_run else None)
