"""Downloads: a link cannot bring the token, so a request with the token makes an address that works once."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

# Seconds for which an address works, and how many there may be.
_VALID, _MOST = 60.0, 100


@dataclass(frozen=True)
class _Ticket:
    path: Path
    name: str
    until: float


def ticket(request: Request, path: Path, name: str) -> str:
    """The address under which a file can be downloaded, once within a minute.

    Args:
        path: of the file, which the server itself has found.
        name: under which the browser stores it.
    """
    open_: dict[str, _Ticket] = request.app.state.tickets
    now = time.monotonic()
    for key in [key for key, one in open_.items() if one.until < now] + list(open_)[: max(0, len(open_) - _MOST)]:
        open_.pop(key, None)
    key = secrets.token_hex(32)
    open_[key] = _Ticket(path, name, now + _VALID)
    return f"/download/{key}"


async def _download(request: Request) -> Response:
    one = request.app.state.tickets.pop(request.path_params["ticket"], None)
    if one is None or one.until < time.monotonic() or not one.path.is_file():
        raise HTTPException(404)
    headers = {"content-disposition": f"attachment; filename*=UTF-8''{quote(one.name, safe='')}"}
    return _Whole(one.path, media_type="application/octet-stream", headers=headers)


class _Whole(FileResponse):
    """A file in one piece: parts of it are not handed out."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = [(name, value) for name, value in scope["headers"] if name.lower() not in (b"range", b"if-range")]
        await super().__call__({**scope, "headers": plain}, receive, send)


ROUTES = [Route("/download/{ticket}", _download, methods=["GET"])]
