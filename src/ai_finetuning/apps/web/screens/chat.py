"""会話: base and trained model side by side."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/chat", shell("chat"))]
