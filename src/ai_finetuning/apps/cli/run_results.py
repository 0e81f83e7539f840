"""aift runs best, aift runs adopt: what becomes of a run's result"""

from __future__ import annotations

from pathlib import Path

import typer

from ...errors import localized
from ...messages import argument, notice
from .run_ids import ID, ROOTS, entry_of, places_of


def register(app: typer.Typer) -> None:
    """Adds the verbs."""
    app.command(
        help=localized(
            "残してある最良の重みを、実行の結果にします。最後の重みは checkpoints/last に残り、--undo で戻せます。",
            "Makes the kept best weights a run's result; the last ones stay in checkpoints/last, and --undo brings them back.",
        )
    )(best)
    app.command(
        help=localized(
            "実行のモデルに、使っている印（採用中）を付けます。--undo で外します。",
            "Marks a run's model as the one in use; --undo takes the mark away.",
        )
    )(adopt)


def best(
    id: str = ID,
    undo: bool = typer.Option(
        False, "--undo", help=localized("最後の重みを結果に戻します。", "the last weights are the result again")
    ),
    roots: list[Path] | None = ROOTS,
) -> None:
    """Puts other weights in the place of the result's."""
    from ...evaluation.returned import take_best, take_last
    from ...runs.adopted import adopted_before
    from ...runs.folder import read_run

    folder = entry_of(id, roots).path
    shown = argument(folder)
    if undo:
        last = take_last(folder).last_step
        notice(
            f"{folder} の結果を最後のステップ {last:,} の重みに戻しました。",
            f"the result of {folder} are the weights of its last step, {last:,}, again.",
        )
    else:
        found = take_best(folder)
        notice(
            f"{folder} の結果を最良のステップ {found.step:,} の重みにしました。最後のステップ {found.last_step:,} に戻す: aift runs best {shown} --undo",
            f"the result of {folder} are now the weights of its best step, {found.step:,}. Back to the last step, "
            f"{found.last_step:,}: aift runs best {shown} --undo",
        )
    marked = adopted_before(read_run(folder))
    if marked is not None:
        notice(
            f"採用していたのはステップ {marked:,} の重みです。いまの結果を採用する: aift runs adopt {shown}",
            f"the weights of step {marked:,} were in use. To adopt the result as it is now: aift runs adopt {shown}",
        )


def adopt(
    id: str = ID,
    undo: bool = typer.Option(False, "--undo", help=localized("印を外します。", "take the mark away")),
    roots: list[Path] | None = ROOTS,
) -> None:
    """Marks it, and says what its verdict has against it."""
    from ...runs.adopted import adopt as mark
    from ...runs.adopted import release
    from ...runs.listing import adopted_first, list_runs

    folder = entry_of(id, roots).path
    if undo:
        release(folder)
        notice(f"{folder} の採用をやめました。", f"{folder} is no longer in use.")
        return
    doubt = mark(folder)
    notice(f"{folder} を採用しました。", f"{folder} is in use.")
    if doubt is not None:
        notice(doubt.ja, doubt.en)
    for other in adopted_first(list_runs(*places_of(roots))):
        if other.adopted is not None and other.path.resolve() != folder.resolve():
            shown = argument(other.path)
            notice(
                f"ほかに採用中: {other.path}（やめるには aift runs adopt {shown} --undo）",
                f"also in use: {other.path} (aift runs adopt {shown} --undo takes it out of use)",
            )
