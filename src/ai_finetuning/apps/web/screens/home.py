"""ホーム: this PC, what is going on, the last runs; and what the head of every screen shows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..api import answer, blocking, body, status_of, text
from ..children import run as run_child
from ..site import Site, site_of

if TYPE_CHECKING:
    from ....runs.listing import RunEntry

# Runs that are shown, and verdicts that have a word: of evaluation/adoption.py and evaluation/verdict.py.
_LAST = 5
_DECISIONS = ("adopt", "hold", "reject")
_KINDS = ("better", "unchanged", "overfitted", "worse", "diverged")


async def _head(request: Request) -> Response:
    return answer(await blocking(_summary, site_of(request)))


def _summary(site: Site) -> dict[str, Any]:
    from ....system.machine import machine

    found = machine()
    states = [entry.status for entry in site.list_runs()]
    return {
        "gpu_free": max((gpu.free_bytes for gpu in found.gpus), default=None),
        "memory_free": found.free_memory_bytes,
        "running": states.count("running"),
        "waiting": states.count("waiting"),
        "jobs": site.jobs_at_work(),
    }


async def _home(request: Request) -> Response:
    return answer(await blocking(_here, site_of(request)))


def _here(site: Site) -> dict[str, Any]:
    from ....system.machine import machine

    found, entries = machine(), site.list_runs()
    there = next(path for path in (site.runs, *site.runs.parents) if path.is_dir())
    disk = shutil.disk_usage(there)
    at_work = [entry for entry in entries if entry.state.at_work]
    return {
        "machine": {
            "cpu": found.cpu,
            "cores": found.cores,
            "memory": found.memory_bytes,
            "memory_free": found.free_memory_bytes,
            "gpus": [{"name": gpu.name, "total": gpu.total_bytes, "free": gpu.free_bytes} for gpu in found.gpus],
        },
        "disk": {"free": disk.free, "total": disk.total},
        "at_work": [_entry(entry) | {"seconds_left": _left(entry.path)} for entry in at_work],
        "last": [_entry(entry) for entry in entries if not entry.state.at_work][:_LAST],
        "demo": site.demo,
    }


def _entry(entry: RunEntry) -> dict[str, Any]:
    from ....runs.folder import read_run

    return {
        "id": entry.id,
        "name": entry.path.resolve().name,
        "status": status_of(entry.state),
        "phase": entry.state.phase,
        "model": entry.model,
        "method": entry.method,
        "started": entry.started,
        "step": entry.step,
        "total": entry.total_steps,
        "before": entry.loss_before,
        "after": entry.loss_after,
        "adopted": entry.adopted is not None,
        "verdict": _verdict(read_run(entry.path)) if entry.status == "completed" else None,
    }


def _verdict(run: dict[str, Any]) -> str | None:
    """How a finished run is called: by the comparison with its base, else by its evaluation losses."""
    decided, result = run.get("verdict"), run.get("result")
    losses = result.get("verdict") if isinstance(result, dict) else None
    for found, key, kinds in ((decided, "result", _DECISIONS), (losses, "kind", _KINDS)):
        kind = found.get(key) if isinstance(found, dict) else None
        if kind in kinds:
            return str(kind)
    return None


def _left(folder: Path) -> float | None:
    from ....config.run_folder import METRICS
    from ....runs.rows import last_rows, seconds_left

    return seconds_left(last_rows(folder / METRICS))


async def _details(request: Request) -> Response:
    """Versions and devices as `aift env` tells them, which imports torch: by a child, when it is asked for."""
    return answer(await run_child(request, ["env", "--json", "-"]))


async def _language(request: Request) -> Response:
    chosen = text(await body(request), "language")
    site_of(request).language = "ja" if chosen == "ja" else "en"
    return answer({})


ROUTES = [
    Route("/api/head", _head),
    Route("/api/home", _home),
    Route("/api/home/details", _details, methods=["POST"]),
    Route("/api/language", _language, methods=["POST"]),
]
