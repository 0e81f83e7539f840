"""aift models"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ...errors import localized
from ...messages import on_one_line, printable
from .json_out import WritesJson, json_option, write_json

if TYPE_CHECKING:
    from ...models.catalog import CatalogRow
    from ...models.local import LocalModel
    from ...planner.gpus import Gpus

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
        cls=WritesJson,
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
    gpu: str | None = typer.Option(
        None,
        "--gpu",
        metavar="NAMExN",
        help=localized(
            "この PC の代わりに、名前と枚数で指定した GPU（4090x2 など）に収まるかを見ます。",
            "what fits these GPUs (4090x2) instead of this machine",
        ),
    ),
    folder: Path = typer.Option(
        Path(),
        "--in",
        metavar="FOLDER",
        help=localized("モデルを探すフォルダーです。", "where to look for models beside the hub's cache"),
    ),
    json_file: str | None = json_option("一覧", "the list"),
) -> None:
    """A table of the catalog; an exact name shows everything that is known of it."""
    from ...errors import ConfigError
    from ...models import catalog

    if method not in _USES:
        raise ConfigError(
            f"--method が {method!r} です。{', '.join(_USES)} のいずれかにしてください。",
            f"--method is {method!r}; it must be one of {', '.join(_USES)}.",
        )
    elsewhere = None
    if gpu is not None:
        from ...planner.gpus import parse_gpus

        elsewhere = parse_gpus(gpu)
    known = catalog.supported_models()
    if json_file is not None:
        write_json(json_file, _as_json(query, method, folder, elsewhere, simulate=fits))
        return
    if query in known:
        _describe(query, known[query])
        if fits or elsewhere is not None:
            _describe_fit(catalog.rows()[query], _room(elsewhere), _simulated(query, elsewhere))
        return
    rows = _matching(query)
    room, label = _room(elsewhere), localized(*_USES[method])
    for line in (
        localized(
            f"○ {label} が{room.name_ja}に収まる　● この PC にある",
            f"○ {label} fits {room.name_en}   ● on this PC",
        ),
        localized(
            "数値は必要なメモリー（GiB、計算値）です。", "Numbers are the memory that is needed (GiB, computed)."
        ),
        *([] if room.devices == 1 else [localized("1 枚あたりの値です。", "On each GPU.")]),
    ):
        print(line, flush=True)
    from ...models.local import local_models

    here = {model.name for model in local_models(folder)}
    ranked = sorted(_real(rows), key=lambda row: _rank(row, method, room, row.id in here))
    if fits:
        ranked = [row for row in ranked if room.need(row, method) <= room.gib]
    if not ranked:
        print(localized("収まるモデルはありません。", "No model fits."))
        return
    _print_table(ranked, method, room, here)


def _matching(query: str | None) -> list[CatalogRow]:
    """The rows of the catalog whose names hold a text.

    Raises:
        InputNotFoundError: there is none.
    """
    from ...errors import InputNotFoundError
    from ...models import catalog

    rows = [row for row in catalog.rows().values() if (query or "").lower() in row.id.lower()]
    if not rows:
        near = catalog.near(query or "")
        raise InputNotFoundError(
            f"{query} に合うモデルはカタログにありません。"
            + (f"もしかして: {'、'.join(near)}" if near else "aift models で一覧を表示します。"),
            f"no model of the catalog matches {query}."
            + (f" Did you mean: {', '.join(near)}?" if near else " aift models lists them."),
        )
    return rows


def _as_json(query: str | None, method: str, folder: Path, elsewhere: Gpus | None, *, simulate: bool) -> dict[str, Any]:
    """What the table, or an exact name, shows, for programs: the keys do not change.

    Args:
        folder: where models are looked for.
        simulate: of an exact name whose configuration is here, what training takes by a simulation of a step.

    Returns:
        `room` (gib of each of `devices`, gpus), `method`, and `models` in the order of the table: each with `id`, `model`
        (what `model=` takes: the id, or a folder), what `catalog.supported_models` says of it (nulls for one that the catalog does not know), `commercial` (yes, no,
        conditions or null), `recommended`, `here`
        (`place` and `size_bytes` of a model on this PC, else null), `need_gib` by use on each device, and of the uses in
        `simulated` told by a simulation.
    """
    from ...models import catalog
    from ...models.local import local_models

    known, room = catalog.supported_models(), _room(elsewhere)
    local = {model.name: model for model in local_models(folder)}
    names = {name: str((folder / name).absolute()) for name in local if name.startswith("./")}
    rows = [catalog.rows()[query]] if query in known else _matching(query) if query not in local else []
    asked = simulate and query is not None and (query in known or query in local)
    simulated = _simulated(names.get(query or "", query or ""), elsewhere, query in local) if asked else {}

    def described(name: str, row: CatalogRow | None) -> dict[str, Any]:
        here = local.get(name)
        needs = {use: room.need(row, use) for use in _USES if use in row.memory_gib} if row is not None else {}
        return {
            "id": name,
            "model": names.get(name, name),
            **(known[row.id] if row is not None else dict.fromkeys(next(iter(known.values())))),
            "commercial": row.commercial if row is not None else None,
            "recommended": name in catalog.RECOMMENDED,
            "here": _place(name, here),
            "need_gib": needs | simulated,
            "simulated": sorted(simulated),
        }

    shown = [(row.id, row) for row in sorted(_real(rows), key=lambda row: _rank(row, method, room, row.id in local))]
    loose = [(name, catalog.lookup(name)) for name in local if name not in known and (query or "") in name]
    return {
        "room": {"gib": room.gib, "devices": room.devices, "gpus": room.gpus},
        "method": method,
        "models": [described(name, row) for name, row in (*loose, *shown)],
    }


def _place(name: str, here: LocalModel | None) -> dict[str, Any] | None:
    """Where a model of this PC lies; None for one that is not here."""
    from ...embedded import MODEL

    if name == MODEL:
        return {"place": "embedded", "size_bytes": None}
    if here is None:
        return None
    return {"place": "folder" if here.name.startswith("./") else "cache", "size_bytes": here.size_bytes}


@dataclass(frozen=True)
class _Room:
    """What models have to fit into.

    Attributes:
        gib: on each device.
        gpus: whether they are GPUs.
        name_ja, name_en: for the heading.
    """

    gib: float
    devices: int
    gpus: bool
    name_ja: str
    name_en: str

    def need(self, row: CatalogRow, use: str) -> float:
        """GiB of a model on each device."""
        from ...planner.fits import need_gib

        return need_gib(row, use, self.devices)


def _room(elsewhere: Gpus | None) -> _Room:
    from ...planner.gpus import UNCALIBRATED
    from ...system.machine import machine

    if elsewhere is None:
        pc = machine()
        free = pc.room / 2**30
        ja, en = f"この PC の空き {free:.1f} GiB ", f"the {free:.1f} GiB that are free"
        return _Room(free, 1, bool(pc.gpus), ja, en)
    whole = elsewhere.card.memory_gib
    usable = UNCALIBRATED * whole
    return _Room(
        usable,
        elsewhere.count,
        True,
        f" {elsewhere}（1 枚 {whole:g} GiB のうち {usable:.1f} GiB まで）",
        f"{elsewhere} (up to {usable:.1f} of the {whole:g} GiB of each)",
    )


def _real(rows: list[CatalogRow]) -> list[CatalogRow]:
    """Published models; names that were never published only where nothing else matches."""
    return [row for row in rows if row.alias_of is None] or rows


def _rank(row: CatalogRow, method: str, room: _Room, here: bool) -> tuple[Any, ...]:
    """What fits first; of that what is here already, then models that converse, on a GPU the largest first and on a CPU
    the smallest, which it trains in reasonable time; then the rest, the least memory first.
    """
    need = room.need(row, method)
    if need > room.gib:
        return (1, need, row.id)
    return (0, not here, row.template is None, (row.params_b or 0.0) * (-1 if room.gpus else 1), row.id)


def _print_table(rows: list[CatalogRow], method: str, room: _Room, here: set[str]) -> None:
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
        mark = "●" if row.id in here else "○" if room.need(row, method) <= room.gib else ""
        sizes = [f"{room.need(row, use):.0f}" if use in row.memory_gib else "-" for use in _USES]
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


def _simulated(name: str, elsewhere: Gpus | None, found: bool = False) -> dict[str, float]:
    """GiB of one device by method, simulated where the model's configuration is on this PC and one device is meant; else
    nothing.

    Args:
        found: whether it is known to be here.
    """
    from ...embedded import MODEL
    from ...models.local import local_models

    here = {MODEL, *(() if found else (model.name for model in local_models(Path())))}
    if not (found or name in here) or (elsewhere is not None and elsewhere.count > 1):
        return {}
    from ...execution.one_model import simulated_needs

    return {method: size / 2**30 for method, size in simulated_needs(name, elsewhere).items()}


def _describe_fit(row: CatalogRow, room: _Room, simulated: Mapping[str, float]) -> None:
    """For each use whether the model fits, and what it needs there.

    Args:
        simulated: GiB, by use, in the place of the formula's.
    """
    from ...models.catalog import rows

    row = rows()[row.alias_of] if row.alias_of is not None else row
    needs = {use: room.need(row, use) for use in _USES if use in row.memory_gib} | dict(simulated)
    fit = {
        use: localized("収まる", "fits") if need <= room.gib else localized("収まらない", "too large")
        for use, need in needs.items()
    }
    shown = localized("、", ", ").join(
        f"{localized(*_USES[use])} {need:.1f} GiB ({fit[use]})" for use, need in needs.items()
    )
    print(f"  {localized(f'{room.name_ja.strip()}で', f'in {room.name_en}')}: {shown or '-'}")
    how = (
        ("学習はシミュレーション、回答は式の値です。", "Training is simulated, answering told by a formula.")
        if simulated
        else (
            "式の値です。設定ファイルがこの PC にあるモデルを 1 枚の GPU か CPU で見るときは、シミュレーションします。",
            "By a formula; a model whose configuration is on this PC is simulated on one device.",
        )
    )
    print(f"  {localized(*how)}")


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
