"""aift env"""

from __future__ import annotations

from typing import Any

import typer

from ...errors import localized, without_secrets
from ...messages import printable
from .json_out import WritesJson, json_option, write_json


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "env",
        cls=WritesJson,
        help=localized(
            "この PC の状態を表示します（バージョン、CPU、GPU、ディスク、ハブ）。",
            "Shows the state of this machine: versions, CPU, GPU, disk, hub.",
        ),
    )(env)


def env(
    json_file: str | None = json_option("結果", "the result"),
) -> None:
    """Everything that explains why a run is slow or fails."""
    from pathlib import Path

    from ...execution.output_folder import free_disk_bytes
    from ...system.environment import environment
    from ...system.folders import cache_folder

    obtained = environment()
    obtained["free_disk_gb"] = round(free_disk_bytes(Path.cwd()) / 1e9, 1)
    obtained["token_cache"] = str(cache_folder("tokens"))
    obtained["hub"] = _hub()
    obtained["self_check"] = _self_check()
    if json_file is not None:
        write_json(json_file, obtained)
        return
    from ...execution.self_check.record import line

    obtained["self_check"] = str(line(obtained["self_check"]))
    for title, lines in _blocks(obtained):
        print(title)
        for label, value in lines:
            print(f"  {label}: {printable(str(value))}")


def _blocks(obtained: dict[str, Any]) -> list[tuple[str, list[tuple[str, object]]]]:
    """What is known, under headings, with labels in the user's language."""
    cpu, places = obtained["cpu"], obtained["locale"]
    versions = [(name, found or localized("なし", "not installed")) for name, found in obtained["versions"].items()]
    gpus = [
        (
            f"GPU {gpu['index']}",
            localized(
                f"{gpu['name']} {gpu['total_memory_gb']:.1f} GB（空き {gpu['free_memory_gb']:.1f} GB）",
                f"{gpu['name']} {gpu['total_memory_gb']:.1f} GB ({gpu['free_memory_gb']:.1f} GB free)",
            ),
        )
        for gpu in obtained["gpu"]["devices"]
    ]
    unused = localized(
        "ありますが PyTorch からは使えません（CPU 版の PyTorch か、古いドライバー）",
        "there, but PyTorch cannot use it (a build for CPUs, or an old driver)",
    )
    return [
        (localized("バージョン", "Versions"), versions),
        (
            localized("この PC", "This PC"),
            [
                ("OS", obtained["platform"]),
                ("CPU", cpu["name"]),
                (localized("コア数", "cores"), cpu["cores"]),
                (localized("CPU の命令", "CPU instructions"), ", ".join(cpu["flags"]) or "-"),
                (
                    localized("bf16 の命令", "bf16 instructions"),
                    localized("あり", "yes") if cpu["bf16"] else localized("なし", "no"),
                ),
                (localized("メモリー", "memory"), f"{obtained['memory_gb']} GB"),
                *(gpus or [("GPU", localized("なし", "none"))]),
                *([("GPU", unused)] if gpus and not obtained["gpu"]["available"] else []),
                (
                    localized("ディスクの空き（このフォルダー）", "free disk (this folder)"),
                    f"{obtained['free_disk_gb']} GB",
                ),
            ],
        ),
        (
            localized("計算", "Computing"),
            [
                (localized("デバイス", "device"), obtained["device"]),
                ("CUDA", obtained["cuda"] or localized("なし", "none")),
                (localized("デバイスの自己検査", "self-check of the device"), obtained["self_check"]),
                (localized("スレッド数", "threads"), obtained["threads"]),
                (localized("トークンのキャッシュ", "token cache"), obtained["token_cache"]),
            ],
        ),
        (
            localized("言語と接続", "Locale and network"),
            [
                (localized("ロケール（LANG）", "locale (LANG)"), places["LANG"] or "-"),
                (localized("ファイルの文字コード", "encoding of files"), places["preferred_encoding"]),
                (localized("出力の文字コード", "encoding of the output"), places["stdout_encoding"]),
                (localized("ハブ", "hub"), obtained["hub"]),
            ],
        ),
    ]


def _self_check() -> dict[str, Any] | None:
    """What `aift gpu self-check` found last with this device, driver and torch, without the single results."""
    from ...execution.self_check import facts, record

    made = record.stored(facts.device_to_check(None))
    return None if made is None else {key: made[key] for key in ("date", "part", "count", "key")}


def _hub() -> str:
    """Whether the hub answers, within its time limit."""
    from ...models import hub
    from ...system.network import offline

    if offline():
        return localized("オフライン設定 (HF_HUB_OFFLINE)", "offline by HF_HUB_OFFLINE")
    return without_secrets(hub.reachability())
