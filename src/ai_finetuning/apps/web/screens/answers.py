"""一括回答: a file of questions answered."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/answers", shell("answers"))]
