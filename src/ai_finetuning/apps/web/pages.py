"""The pages without their data, which anybody may see: labels in one language; and the files that they load."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.routing import Route

from . import words
from .site import language_of, site_of

_HERE = Path(__file__).parent
_TYPES = {".js": "text/javascript", ".css": "text/css"}
_STATIC = {
    file.relative_to(_HERE / "static").as_posix(): file
    for file in sorted((_HERE / "static").rglob("*"))
    if file.suffix in _TYPES
}
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)
# The navigation: the screen, where it is, and the screens that are steps of it.
NAVIGATION: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("home", "/", ()),
    ("data", "/data", ()),
    ("models", "/models", ()),
    ("settings", "/train", ("runs", "results")),
    ("chat", "/chat", ()),
    ("answers", "/answers", ()),
    ("compare", "/compare", ()),
    ("export", "/export", ()),
)


def shell(screen: str) -> Callable[[Request], Awaitable[Response]]:
    """What answers with a screen's page.

    Args:
        screen: names pages/SCREEN.html, static/SCREEN.js and words/SCREEN.py.
    """

    async def page(request: Request) -> Response:
        language = language_of(request)
        texts = words.of(language, screen)
        # Inside a script element only `<` could end it.
        data = json.dumps(texts, ensure_ascii=False).replace("<", "\\u003c")
        html = _TEMPLATES.get_template(f"{screen}.html").render(
            language=language,
            screen=screen,
            t=texts.__getitem__,
            words=data,
            navigation=NAVIGATION,
            demo=site_of(request).demo,
        )
        return HTMLResponse(html)

    return page


async def _static(request: Request) -> Response:
    file = _STATIC.get(request.path_params["name"])
    if file is None:
        raise HTTPException(404)
    return FileResponse(file, media_type=_TYPES[file.suffix], headers={"accept-ranges": "none"})


ROUTES = [Route("/static/{name:path}", _static, methods=["GET"])]
