"""モデル: what can be trained on this PC."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/models", shell("models"))]
