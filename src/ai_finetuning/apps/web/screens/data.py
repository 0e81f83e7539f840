"""データ: what a user uploads, read and checked."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/data", shell("data"))]
