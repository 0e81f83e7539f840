"""書き出し, API を開始: `aift serve` for a run or a model, as a job that nobody owns. Each has a free port and a key of its
own, which lies in a file of the job's folder that only this user can read.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ...errors import RunLockedError, StorageError
from ...runs import jobs
from ...system.files import read_bounded
from . import job_routes
from .api import answer, blocking, body, status_of
from .screens.chosen import chosen, slug
from .site import Site, language_of, site_of

KIND = jobs.API
_KEY, _TOLD, _LARGEST = "key", "ready.json", 65_536
# Lines of what it has said that the page shows, and the newest jobs that are looked at.
_LINES, _MOST = 40, 100


def running(site: Site) -> list[dict[str, Any]]:
    """The APIs as the page shows them: of each model the newest one, unless somebody has stopped it."""
    newest: dict[tuple[str, str], jobs.Job] = {}
    for job in jobs.listed(site.data, KIND, _MOST):
        newest.setdefault(_model_of(job), job)
    return [told for told in map(_told, newest.values()) if told["status"] != "stopped"]


def _model_of(job: jobs.Job) -> tuple[str, str]:
    of = dict(job.about["of"])
    return str(of["by"]), str(of["id"])


def _told(job: jobs.Job) -> dict[str, Any]:
    status = status_of(job.state)
    ready = _ready(job.folder) if status == "running" else None
    return {
        "id": job.id,
        "status": status,
        "reason": job.state.reason,
        "made_at": job.made,
        "of": job.about["of"],
        "command": ["aift", "serve", str(job.about["name"]), "--alias", str(job.about["alias"])],
        "ready": ready,
        "log": jobs.last_said(job.folder)[-_LINES:],
    }


def _ready(folder: Path) -> dict[str, str] | None:
    """Where it answers, under which name and with which key; None before it does."""
    try:
        told = json.loads(read_bounded(folder / _TOLD, _LARGEST))
        key = read_bounded(folder / _KEY, _LARGEST).decode()
        return {"base_url": str(told["base_url"]), "model": str(told["model"]), "key": key}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def begin(site: Site, values: Mapping[str, Any], language: str) -> jobs.Job:
    """Starts an API.

    Args:
        values: name a run or a model.

    Raises:
        RunLockedError: this one has an API. ToolkitError: there is no such model, or a package is missing.
    """
    from ...export.serve_needs import validate_server

    choice = chosen(site, values)
    validate_server()
    for job in jobs.listed(site.data, KIND, _MOST):
        if job.state.at_work and _model_of(job) == (choice.by, choice.id):
            raise RunLockedError(
                f"{choice.label} の API はもう動いているか、順番を待っています。",
                f"{choice.label} has an API already, or one that waits for its turn.",
            )
    folder = jobs.new_folder(site.data, KIND)
    alias = slug(choice)
    own = ("--key-file", str(folder / _KEY), "--json", str(folder / _TOLD))
    about = {
        "of": {"by": choice.by, "id": choice.id, "label": choice.label},
        "name": choice.name,
        "alias": alias,
    }
    try:
        file = os.open(folder / _KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "w", encoding="ascii") as opened:
            opened.write(secrets.token_urlsafe(24))
    except OSError as error:
        raise StorageError(
            f"{folder} に書き込めません（{error}）。", f"{folder} cannot be written ({error})."
        ) from error
    return jobs.start(
        folder, [jobs.Step(("serve", choice.name, "--port", "0", "--alias", alias, *own))], about, language
    )


async def _start(request: Request) -> JSONResponse:
    site, values = site_of(request), await body(request)
    async with site.locks[KIND]:  # a second click sees the first one's
        job = await blocking(begin, site, values, language_of(request))
    return answer({"id": job.id})


ROUTES = [
    Route("/api/export/serve", _start, methods=["POST"]),
    job_routes.stop_route(KIND, _told, "/api/export/serve"),
]
