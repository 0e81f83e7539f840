"""書き出し: a trained model for other programs."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/export", shell("export"))]
