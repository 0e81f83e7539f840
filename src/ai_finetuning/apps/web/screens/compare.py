"""比較: runs side by side."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/compare", shell("compare"))]
