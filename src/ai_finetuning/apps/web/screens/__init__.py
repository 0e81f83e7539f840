"""The screens: where each page is; and a module each whose ROUTES, below /api/SCREEN, give its data."""

from __future__ import annotations

import importlib

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import Receive, Scope, Send

from ..api import blocking
from ..pages import shell
from . import home, runs

PATHS = {
    "home": "/",
    "data": "/data",
    "models": "/models",
    "settings": "/train",
    "runs": "/runs/{id}",
    "results": "/runs/{id}/result",
    "chat": "/chat",
    "answers": "/answers",
    "compare": "/compare",
    "export": "/export",
}


class Later(BaseRoute):
    """The data of a screen, whose module is imported when it is first asked: most of the start's time would be theirs."""

    def __init__(self, screen: str) -> None:
        self._screen = screen
        self._router: Router | None = None

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Whether a request is for this screen's data."""
        mine = f"{scope['path']}/".startswith(f"/api/{self._screen}/")
        return (Match.FULL if mine else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hands a request on to the module's routes."""
        if self._router is None:
            module = await blocking(importlib.import_module, f"{__name__}.{self._screen}")
            self._router = Router(module.ROUTES)
        await self._router(scope, receive, send)


ROUTES: list[BaseRoute] = [
    *(Route(path, shell(screen)) for screen, path in PATHS.items()),
    *home.ROUTES,
    *runs.ROUTES,
    *(Later(screen) for screen in PATHS if screen not in ("home", "runs")),
]
