"""実行中: a run as it goes, by its files; what is asked of it."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/runs/{id}", shell("runs"))]
