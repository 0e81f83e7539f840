"""ホーム: this PC, what is going on, the last runs; and what the head of every screen shows."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ..api import answer, blocking, body, text
from ..pages import shell
from ..site import Site, site_of


async def _head(request: Request) -> JSONResponse:
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
    }


async def _language(request: Request) -> Response:
    chosen = text(await body(request), "language")
    site_of(request).language = "ja" if chosen == "ja" else "en"
    return answer({})


ROUTES = [
    Route("/", shell("home")),
    Route("/api/head", _head),
    Route("/api/language", _language, methods=["POST"]),
]
