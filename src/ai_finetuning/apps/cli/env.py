"""aift env"""

from __future__ import annotations

import typer

from ...errors import localized, without_secrets


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "env",
        help=localized(
            "この PC の状態を表示します（版、CPU、GPU、ディスク、ハブ）。",
            "Shows the state of this machine: versions, CPU, GPU, disk, hub.",
        ),
    )(env)


def env(
    as_json: bool = typer.Option(False, "--json", help=localized("JSON で出力します", "print JSON")),
) -> None:
    """Everything that explains why a run is slow or fails."""
    import json
    from pathlib import Path

    from ...execution.output_folder import free_disk_bytes
    from ...system.environment import environment
    from ...system.folders import cache_folder

    obtained = environment()
    obtained["free_disk_gb"] = round(free_disk_bytes(Path.cwd()) / 1e9, 1)
    obtained["token_cache"] = str(cache_folder("tokens"))
    obtained["hub"] = _hub()
    if as_json:
        print(json.dumps(obtained, ensure_ascii=False, indent=1))
        return
    for key, value in obtained.items():
        if isinstance(value, dict):
            print(f"{key}:")
            for name, inner in value.items():
                print(f"  {name}: {inner}")
        else:
            print(f"{key}: {value}")


def _hub() -> str:
    """Whether the hub answers, within its time limit."""
    from ...models import hub
    from ...system.network import offline

    if offline():
        return localized("オフライン設定 (HF_HUB_OFFLINE)", "offline by HF_HUB_OFFLINE")
    return without_secrets(hub.reachability())
