"""結果: what a run has come to."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/runs/{id}/result", shell("results"))]
