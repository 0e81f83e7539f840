"""What the checks of a machine gave, kept beside the other caches: one JSON for each device, driver and build of torch."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...errors import Reason
from ...planner.gpus import Card, card_named
from ...planner.roofline import Rates
from ...system.files import is_private, read_bounded, write_in_place
from ...system.folders import cache_folder, private_cache
from .facts import key_of
from .results import Result

_KIND, _VERSION, _MOST, _MOST_FILES = "self-check", 1, 2**22, 100

# Parts of a record that a short check leaves as they are.
_MEASURED = ("speed", "between_gpus", "calibration")


def make(device: torch.device, part: str, facts: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """A record.

    Args:
        part: `quick`, `one` (of one device) or `all`.
    """
    count = {status: sum(result.status == status for result in results) for status in ("passed", "failed", "not run")}
    return {
        "version": _VERSION,
        "key": key_of(device),
        "part": part,
        "date": datetime.date.today().isoformat(),
        "count": count,
        "facts": dict(facts),
        "results": [result.as_dict() for result in results],
    }


def store(record: Mapping[str, Any]) -> None:
    """Keeps a record, with the speeds and the calibration of the one before it where it has none of its own; never a
    reason to fail.
    """
    former = stored_for(record["key"]) or {}
    whole = {name: former[name] for name in _MEASURED if name in former} | dict(record)
    if isinstance(former.get("calibration"), dict) and isinstance(record.get("calibration"), dict):
        whole["calibration"] = former["calibration"] | record["calibration"]  # only several GPUs tell of communicators
    with contextlib.suppress(OSError):
        write_in_place(private_cache(_KIND) / _name(record["key"]), text_of(whole).encode("utf-8"))


def stored(device: torch.device) -> dict[str, Any] | None:
    """The record of a device as it is now; None where it was not checked, or with another driver or torch."""
    return stored_for(key_of(device))


def stored_for(key: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of a key."""
    if not cache_folder(_KIND).is_dir():
        return None
    record = _read(private_cache(_KIND) / _name(key))
    return record if record is not None and record["key"] == dict(key) else None


def _read(file: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(read_bounded(file, _MOST)) if is_private(file) else None
    except (OSError, ValueError):
        return None
    if not isinstance(read, dict) or read.get("version") != _VERSION:
        return None
    return read if isinstance(read.get("count"), dict) and isinstance(read.get("key"), dict) else None


def rates_of(device: torch.device) -> Rates | None:
    """What a device reached in its own check; None without one."""
    record = stored(device)
    return None if record is None else _rates(record)


def rates_like(card: Card) -> Rates | None:
    """What a GPU of this kind reached in a check on this machine, the newest; None without one."""
    measured = [(str(record.get("date")), rates) for record in _like(card) if (rates := _rates(record)) is not None]
    return max(measured, key=lambda item: item[0])[1] if measured else None


def _like(card: Card) -> list[dict[str, Any]]:
    """The records of GPUs of a kind."""
    if not cache_folder(_KIND).is_dir():
        return []
    records = [_read(file) for file in sorted(private_cache(_KIND).glob("*.json"))[:_MOST_FILES]]
    return [record for record in records if record is not None and card_named(str(record["key"].get("device"))) is card]


def _rates(record: Mapping[str, Any]) -> Rates | None:
    names = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    try:
        products, memory = record["speed"]["tflops"], float(record["speed"]["gb_per_second"]["memory"])
        tflops = {short: float(products[name]) for name, short in names.items() if name in products}
    except (KeyError, TypeError, ValueError):
        return None
    name = record["key"]["device"]
    return Rates(
        tflops,
        memory,
        Reason(
            f"{name} の自己検査の速さからの計算です。GPU 間の通信は、ddp と fsdp の勾配と重みだけを含みます",
            f"computed from what the self-check of {name} reached; of what GPUs send each other only gradients and weights of "
            "ddp and fsdp",
        ),
    )


def calibration_of(device: torch.device) -> Reason | None:
    """By which check it was measured what the libraries take of a device's memory; None without one."""
    record = stored(device)
    return _calibration(record) if record is not None else None


def calibration_like(card: Card) -> Reason | None:
    """The newest calibration of a GPU of this kind on this machine; None without one."""
    found = [(str(record.get("date")), how) for record in _like(card) if (how := _calibration(record)) is not None]
    return max(found, key=lambda item: item[0])[1] if found else None


def libraries_of(device: torch.device) -> dict[str, int]:
    """Bytes that libraries take of a device beside tensors, as its check has measured them: `context_bytes`,
    `workspace_bytes`, `compiled_bytes`, and `communicator_bytes` for each communicator of NCCL; empty without a check.
    """
    record = stored(device)
    return {} if record is None else _libraries(record)


def libraries_like(card: Card) -> dict[str, int]:
    """The same of the newest calibration of a GPU of this kind on this machine."""
    found = [(str(record.get("date")), taken) for record in _like(card) if (taken := _libraries(record))]
    return max(found, key=lambda item: item[0])[1] if found else {}


def _libraries(record: Mapping[str, Any]) -> dict[str, int]:
    kept = record.get("calibration")
    if not isinstance(kept, dict):
        return {}
    return {name: value for name, value in kept.items() if isinstance(value, int) and 0 <= value < 2**40}


def _calibration(record: Mapping[str, Any]) -> Reason | None:
    if not record.get("calibration"):
        return None
    name, date = record["key"].get("device"), record.get("date")
    return Reason(f"{name} の自己検査（{date}）", f"self-check of {name} ({date})")


def line(record: Mapping[str, Any] | None) -> Reason:
    """A record in one line."""
    if record is None:
        return Reason("未実施（aift gpu self-check）", "not done (aift gpu self-check)")
    count, date, part = record["count"], record["date"], record["part"]
    good, bad, left = (int(count.get(status, 0)) for status in ("passed", "failed", "not run"))
    return Reason(
        f"{date} に実施（{part}）: 合格 {good}、不合格 {bad}、実行できず {left}",
        f"{date} ({part}): {good} passed, {bad} failed, {left} not run",
    )


def text_of(record: Mapping[str, Any]) -> str:
    """The JSON."""
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"


def _name(key: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(key.items())).encode("utf-8")).hexdigest()[:32] + ".json"
