"""`aift` alone: this PC, the models and runs at hand, and what to do next."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import localized
from ...messages import argument, on_one_line

if TYPE_CHECKING:
    from ...models.local import LocalModel
    from ...runs.listing import RunEntry
    from ...system.machine import Machine

# Runs and models that are shown.
_SHOWN = 5
# Characters of a model's name and of a method, and entries of this folder that are looked at for a table.
_NAME, _ENTRIES = 100, 10_000
# Endings of files that `aift start` is suggested for, the likeliest first.
_TABLES = (".xlsx", ".csv", ".tsv", ".jsonl")


def home() -> None:
    """Prints it all; nothing is loaded and nobody is asked over the network."""
    from ...system.machine import machine

    here = Path()
    _block(localized("この PC", "This PC"), machine_lines(machine()))
    from ...models.local import local_models
    from ...runs.listing import list_runs

    _block(localized("見つかったモデル", "Models found"), _model_lines(local_models(here)))
    runs = list_runs(here)
    _block(localized("最近の学習", "Last runs"), _run_lines(runs))
    _block(localized("次のステップ", "Next steps"), _next_lines(here, runs))


def _block(title: str, lines: list[str]) -> None:
    print(title)
    for line in lines:
        print(f"  {on_one_line(line)}", flush=True)


def machine_lines(found: Machine) -> list[str]:
    """Processor, memory and GPUs."""
    gib = 2**30
    lines = [
        localized(f"CPU: {found.cpu}（{found.cores} コア）", f"CPU: {found.cpu} ({found.cores} cores)"),
        localized(
            f"メモリー: {found.memory_bytes / gib:.1f} GiB（空き {found.free_memory_bytes / gib:.1f} GiB）",
            f"memory: {found.memory_bytes / gib:.1f} GiB ({found.free_memory_bytes / gib:.1f} GiB free)",
        ),
    ]
    if not found.gpus:
        return [*lines, localized("GPU: なし（CPU で学習します）", "GPU: none (training runs on the CPU)")]
    return lines + [
        localized(
            f"GPU {gpu.index}: {gpu.name} {gpu.total_bytes / gib:.0f} GiB（空き {gpu.free_bytes / gib:.0f} GiB）",
            f"GPU {gpu.index}: {gpu.name} {gpu.total_bytes / gib:.0f} GiB ({gpu.free_bytes / gib:.0f} GiB free)",
        )
        for gpu in found.gpus
    ]


def _model_lines(models: list[LocalModel]) -> list[str]:
    from ...embedded import MODEL

    lines = [f"{model.name}  {size_text(model.size_bytes)}  {model.place}" for model in models[:_SHOWN]]
    if len(models) > _SHOWN:
        lines.append(localized(f"ほかに {len(models) - _SHOWN} 個", f"{len(models) - _SHOWN} more"))
    return [*lines, localized(f"{MODEL}  同梱（練習用）", f"{MODEL}  ships with the toolkit (for practice)")]


def size_text(size: int) -> str:
    """A size on disk."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _run_lines(runs: list[RunEntry]) -> list[str]:
    if not runs:
        return [localized("まだありません", "none yet")]
    return [_run_line(run) for run in runs[:_SHOWN]]


def _run_line(run: RunEntry) -> str:
    from ...runs.state import STATUSES

    parts = [str(run.folder), str(STATUSES[run.status])]
    if run.step is not None:
        done = f"{run.step}/{run.total_steps}" if run.total_steps else str(run.step)
        parts.append(localized(f"ステップ {done}", f"step {done}"))
    if run.loss_after is not None:
        before = f"{run.loss_before:.3f} → " if run.loss_before is not None else ""
        parts.append(localized("評価損失", "evaluation loss") + f" {before}{run.loss_after:.3f}")
    return "  ".join([*parts, f"{run.method[:_NAME]}: {run.model[:_NAME]}", _ago(time.time() - run.started)])


def _ago(seconds: float) -> str:
    from ...planner.speed import duration

    text = duration(max(60.0, seconds))
    return localized(f"{text}前", f"{text} ago")


def _next_lines(here: Path, runs: list[RunEntry]) -> list[str]:
    """Commands to type, each with what it does."""
    lines: list[tuple[str, str]] = []
    last = runs[0] if runs else None
    if last is not None and last.status in ("stopped", "failed"):
        lines.append((f"aift resume {argument(last.folder)}", localized("続きから学習します", "goes on with that run")))
    if last is not None and last.status == "completed":
        lines.append((f"aift chat {argument(last.folder)}", localized("学習したモデルと話します", "talks with it")))
    table = _table_here(here)
    lines.append(
        (
            f"aift start {argument(table) if table else 'FILE'}",
            localized("Excel・CSV から学習を始めます", "trains on a table of yours"),
        )
    )
    if last is None:
        lines.append(("aift demo", localized("同梱のモデルで試します", "tries it with the embedded model")))
    lines.append(("aift models", localized("この PC で使えるモデルの一覧です", "lists models for this PC")))
    lines.append(("aift --help", localized("すべてのコマンドの一覧です", "lists all commands")))
    width = max(len(command) for command, _ in lines)
    return [f"{command:<{width}}  {what}" for command, what in lines]


def _table_here(here: Path) -> str | None:
    """A table in this folder that looks like data: the newest of the likeliest kind."""
    found: dict[str, list[tuple[float, str]]] = {}
    with contextlib.suppress(OSError), os.scandir(here) as entries:
        for entry in itertools.islice(entries, _ENTRIES):
            ending = next((ending for ending in _TABLES if entry.name.endswith(ending)), None)
            if ending is not None and not entry.name.startswith(("~", ".")) and entry.is_file():
                found.setdefault(ending, []).append((entry.stat().st_mtime, entry.name))
    return next((max(found[ending])[1] for ending in _TABLES if ending in found), None)
