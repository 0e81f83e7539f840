"""aift plan"""

from __future__ import annotations

import typer

from ...errors import localized
from .train import (
    ALLOW_CHANGED,
    AS_JSON,
    CPU_PROCESSES,
    GPU,
    GPUS,
    PILOT,
    PLAN_HELP,
    REPLAY,
    RESTART,
    START,
    VerbWithSettings,
    train,
)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "plan",
        cls=VerbWithSettings,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
        help=localized(
            "学習の計画（ステップ、時間、メモリー、ディスク）を表示します。aift train --dry-run と同じで、何も書き込みません。",
            "Shows the plan of a run: steps, time, memory, disk. The same as aift train --dry-run; nothing is written.",
        ),
    )(plan)


def plan(
    context: typer.Context,
    pilot: bool = PILOT,
    gpu: str | None = GPU,
    planner: str = typer.Option("auto", "--plan", metavar="auto|exact", help=PLAN_HELP),
    json_file: str | None = AS_JSON,
    gpus: int = GPUS,
    cpu_processes: int = CPU_PROCESSES,
    start: str | None = START,
    replay: tuple[float, str] | None = REPLAY,
    restart: bool = RESTART,
    allow_changed: bool = ALLOW_CHANGED,
) -> None:
    """`aift train --dry-run` in a word."""
    train(
        context,
        dry_run=True,
        gpus=gpus,
        cpu_processes=cpu_processes,
        pilot=pilot,
        gpu=gpu,
        planner=planner,
        json_file=json_file,
        start=start,
        replay=replay,
        restart=restart,
        allow_changed=allow_changed,
    )
