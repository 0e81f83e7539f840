"""aift models"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import localized
from ...messages import on_one_line, printable

if TYPE_CHECKING:
    from ...models.catalog import CatalogRow

# Uses by the key of the catalog's memory, with their headings.
_USES = {
    "infer": ("推論", "infer"),
    "lora": ("LoRA", "LoRA"),
    "qlora": ("QLoRA", "QLoRA"),
    "full": ("フル", "full"),
}
# How far a model's prompt is known (docs/templates.md); base models have none.
_STATUS = {
    "golden": ("照合済み", "golden"),
    "tokenizer": ("トークナイザー", "tokenizer"),
    "unconfirmed": ("未確認", "unconfirmed"),
    None: ("-", "-"),
}
# What an exact name shows, in this order: the key of SUPPORTED_MODELS and its label.
_LABELS = {
    "display_name": ("名前", "name"),
    "alias_of": ("公開されている ID", "published as"),
    "parameters_billion": ("パラメーター数（10 億）", "parameters (10^9)"),
    "model_type": ("種類", "type"),
    "context_length": ("最大長（トークン）", "context length (tokens)"),
    "characters_per_token": ("1 トークンの文字数（日本語）", "characters per token (Japanese)"),
    "licence": ("ライセンス", "licence"),
    "non_commercial": ("非商用のみ", "non-commercial use only"),
    "gated": ("利用申請が必要", "access on request"),
    "needs_remote_code": ("リポジトリーのコードが必要", "needs code of its repository"),
    "memory_gb": ("メモリー（計算値）", "memory (computed)"),
    "lora_targets": ("LoRA を付ける層", "layers for LoRA"),
    "template": ("チャットテンプレート", "chat template"),
    "stop_tokens": ("回答を終えるトークン", "tokens that end an answer"),
    "prompt": ("プロンプト", "prompt"),
    "prompt_source": ("プロンプトの出典", "source of the prompt"),
}
_WIDEST = 150


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "models",
        help=localized(
            "使えるモデルを、この PC に収まるものから順に表示します。",
            "Lists known models, those that fit this machine first.",
        ),
    )(models)


def models(
    query: str | None = typer.Argument(
        None, help=localized("名前の一部です（正確な名前なら詳細）。", "part of a name; an exact name shows all of it")
    ),
    fits: bool = typer.Option(
        False, "--fits", help=localized("この PC に収まるものだけを表示します。", "only what fits this machine")
    ),
    method: str = typer.Option(
        "lora",
        help=localized("収まるかどうかを見る用途: ", "use that has to fit: ") + " | ".join(_USES),
    ),
) -> None:
    """A table of the catalog; an exact name shows everything that is known of it."""
    from ...errors import ConfigError, InputNotFoundError
    from ...models import catalog
    from ...system.machine import machine

    if method not in _USES:
        raise ConfigError(
            f"--method が {method!r} です。{', '.join(_USES)} のいずれかにしてください。",
            f"--method is {method!r}; it must be one of {', '.join(_USES)}.",
        )
    known = catalog.supported_models()
    if query in known:
        _describe(query, known[query])
        return
    rows = [row for row in catalog.rows().values() if (query or "").lower() in row.id.lower()]
    if not rows:
        near = catalog.near(query or "")
        raise InputNotFoundError(
            f"{query} に合うモデルはカタログにありません。"
            + (f"もしかして: {'、'.join(near)}" if near else "aift models で一覧を表示します。"),
            f"no model of the catalog matches {query}."
            + (f" Did you mean: {', '.join(near)}?" if near else " aift models lists them."),
        )
    pc = machine()
    room = pc.room / 2**30
    label = localized(*_USES[method])
    for line in (
        localized(
            f"○ {label} がこの PC の空き {room:.1f} GiB に収まる　● この PC にある",
            f"○ {label} fits the {room:.1f} GiB that are free   ● on this PC",
        ),
        localized(
            "数値は必要なメモリー（GiB、計算値）です。", "Numbers are the memory that is needed (GiB, computed)."
        ),
    ):
        print(line, flush=True)
    from ...models.local import local_models

    here, largest_first = {model.name for model in local_models(Path())}, bool(pc.gpus)
    ranked = sorted(_real(rows), key=lambda row: _rank(row, method, room, row.id in here, largest_first=largest_first))
    if fits:
        ranked = [row for row in ranked if _need(row, method) <= room]
    if not ranked:
        print(localized("収まるモデルはありません。", "No model fits."))
        return
    _print_table(ranked, method, room, here)


def _real(rows: list[CatalogRow]) -> list[CatalogRow]:
    """Published models; names that were never published only where nothing else matches."""
    return [row for row in rows if row.alias_of is None] or rows


def _need(row: CatalogRow, method: str) -> float:
    return row.memory_gib.get(method, float("inf"))


def _rank(row: CatalogRow, method: str, room: float, here: bool, *, largest_first: bool) -> tuple[Any, ...]:
    """What fits first; of that what is here already, then models that converse, on a GPU the largest first and on a CPU
    the smallest, which it trains in reasonable time; then the rest, the least memory first.
    """
    need = _need(row, method)
    if need > room:
        return (1, need, row.id)
    return (0, not here, row.template is None, (row.params_b or 0.0) * (-1 if largest_first else 1), row.id)


def _print_table(rows: list[CatalogRow], method: str, room: float, here: set[str]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), header_style="")
    table.add_column("", no_wrap=True)
    table.add_column(localized("モデル", "model"), overflow="fold")
    table.add_column("B", justify="right", no_wrap=True)
    for use in _USES.values():
        table.add_column(localized(*use), justify="right", no_wrap=True)
    table.add_column(localized("ライセンス", "licence"), overflow="fold", max_width=18)
    for row in rows:
        mark = "●" if row.id in here else "○" if _need(row, method) <= room else ""
        sizes = [f"{row.memory_gib[use]:.0f}" if use in row.memory_gib else "-" for use in _USES]
        gated = localized("（要申請）", " (gated)") if row.gated else ""
        note = f"→ {row.alias_of}" if row.alias_of else (row.licence or "?") + gated
        table.add_row(mark, row.id, _billions(row.params_b), *sizes, note)
    console = Console(highlight=False)
    Console(width=min(console.width, _WIDEST), highlight=False).print(table, markup=False)


def _billions(parameters: float | None) -> str:
    return "-" if not parameters else f"{parameters:.0f}" if parameters >= 10 else f"{parameters:.2g}"


def _describe(name: str, values: dict[str, Any]) -> None:
    """Everything that is known of one model, a line for each."""
    print(name)
    for key, label in _LABELS.items():
        if key in values:
            print(f"  {localized(*label)}: {printable(_text(key, values[key]))}")


def _text(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return localized("はい", "yes") if value else localized("いいえ", "no")
    if key == "prompt":
        return localized(*_STATUS[value])
    if isinstance(value, dict):
        return localized("、", ", ").join(f"{localized(*_USES[use])} {size:g} GB" for use, size in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(on_one_line(str(item)) for item in value) or "-"
    return "-" if value in (None, "") else f"{value:,}" if isinstance(value, int) else str(value)
