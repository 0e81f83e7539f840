"""設定: a training's settings, and its start."""

from __future__ import annotations

from starlette.routing import Route

from ..pages import shell

ROUTES = [Route("/train", shell("settings"))]
