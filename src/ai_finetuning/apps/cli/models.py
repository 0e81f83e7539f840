"""aift models"""

from __future__ import annotations

import typer

from ...errors import localized
from ...messages import printable

# How far a model's prompt is known (docs/templates.md); base models have none.
_STATUS = {
    "golden": ("照合済み", "golden"),
    "tokenizer": ("トークナイザー", "tokenizer"),
    "unconfirmed": ("未確認", "unconfirmed"),
    None: ("-", "-"),
}


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "models",
        help=localized(
            "対応モデルと、必要なメモリーの一覧を表示します。", "Lists known models and the memory they need."
        ),
    )(models)


def models(
    query: str | None = typer.Argument(None, help=localized("名前の一部", "part of a name")),
    fits: bool = typer.Option(
        False, "--fits", help=localized("この PC に収まるものだけ", "only what fits this machine")
    ),
    method: str = typer.Option("lora", help="infer | lora | qlora | full"),
) -> None:
    """A table of the catalog; an exact name shows everything that is known of it."""
    from rich.console import Console
    from rich.table import Table

    from ...errors import ConfigError
    from ...models import catalog

    if method not in ("infer", "lora", "qlora", "full"):
        raise ConfigError(
            f"--method が {method!r} です。infer, lora, qlora, full のいずれかにしてください。",
            f"--method is {method!r}; it must be infer, lora, qlora or full.",
        )
    console = Console()
    known = catalog.supported_models()
    if query in known:
        for key, value in known[query].items():
            console.print(printable(f"{key}: {value}"), markup=False, highlight=False)
        return
    rows = [row for row in catalog.rows().values() if not query or query.lower() in row.id.lower()]
    if fits:
        from ...system.gpu import free_memory_bytes, get_available_device

        free = free_memory_bytes(get_available_device()) / 2**30
        rows = [row for row in rows if row.alias_of is None and row.memory_gib.get(method, free + 1) <= free]
    if not rows:
        shown = printable(str(query))
        print(localized(f"{shown} に合うモデルはありません。", f"no model matches {shown}."))
        return
    table = Table(title=localized("メモリーは計算値 (GiB)", "memory is computed (GiB)"))
    prompt, licence = localized("プロンプト", "prompt"), localized("ライセンス", "licence")
    for name in ("id", "B", "infer", "LoRA", "QLoRA", "full", prompt, licence):
        table.add_column(name, no_wrap=name == "id", justify="left" if name in ("id", prompt, licence) else "right")
    for row in rows:
        sizes = [
            f"{row.memory_gib[use]:.0f}" if use in row.memory_gib else "-" for use in ("infer", "lora", "qlora", "full")
        ]
        note = f"-> {row.alias_of}" if row.alias_of else (row.licence or "?") + (" (gated)" if row.gated else "")
        status = known[row.id]["prompt"]
        table.add_row(row.id, f"{row.params_b:g}" if row.params_b else "-", *sizes, localized(*_STATUS[status]), note)
    Console(width=max(console.width, 144)).print(table)
