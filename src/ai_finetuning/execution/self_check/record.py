"""What the checks of a machine gave, kept beside the other caches: one JSON for each device, driver and build of torch."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...errors import Reason
from ...system.files import is_private, read_bounded, write_in_place
from ...system.folders import cache_folder, private_cache
from .facts import key_of
from .results import Result

_KIND, _VERSION, _MOST = "self-check", 1, 2**22


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
    """Keeps a record; never a reason to fail."""
    with contextlib.suppress(OSError):
        write_in_place(private_cache(_KIND) / _name(record["key"]), text_of(record).encode("utf-8"))


def stored(device: torch.device) -> dict[str, Any] | None:
    """The record of a device as it is now; None where it was not checked, or with another driver or torch."""
    return stored_for(key_of(device))


def stored_for(key: Mapping[str, str]) -> dict[str, Any] | None:
    """The record of a key."""
    if not cache_folder(_KIND).is_dir():
        return None
    file = private_cache(_KIND) / _name(key)
    try:
        read = json.loads(read_bounded(file, _MOST)) if is_private(file) else None
    except (OSError, ValueError):
        return None
    if not isinstance(read, dict) or read.get("version") != _VERSION or read.get("key") != dict(key):
        return None
    return read if isinstance(read.get("count"), dict) else None


def is_calibrated(device: torch.device) -> bool:
    """Whether it was measured what the libraries take of a device's memory."""
    record = stored(device)
    return record is not None and bool(record.get("calibration"))


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
