"""The screens: each module has its ROUTES, the page's and those of its data below /api/SCREEN/."""

from __future__ import annotations

from starlette.routing import Route

from . import answers, chat, compare, data, export, home, models, results, runs, settings

ROUTES: list[Route] = [
    route
    for module in (home, data, models, settings, runs, results, chat, answers, compare, export)
    for route in module.ROUTES
]
