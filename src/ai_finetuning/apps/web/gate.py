"""What stands between the page's server and whoever can reach its port: other programs, users and sites.

A site can send requests to 127.0.0.1, under a name of its own too (DNS rebinding), and a cookie would reach it from any
port of this PC. So a request is answered under this server's own names, from no page but its own, and, for everything
but the empty pages, with the token that was printed at the start. All this is decided before any body is read.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN = b"x-aift-token"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS = tuple(
    (name.encode(), value.encode())
    for name, value in {
        "content-security-policy": POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cross-origin-resource-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cache-control": "no-store",
    }.items()
)


@dataclass(frozen=True)
class Gate:
    """An ASGI application that answers what it refuses, and hands everything else on.

    Attributes:
        app: what is behind it.
        hosts: the values of `Host` under which this server is asked, with the port.
        token: what the header x-aift-token has to hold.
    """

    app: App
    hosts: frozenset[str]
    token: str

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif (status := self._refused(scope)) is not None:
            await _answer(send, status)
        else:
            await self.app(scope, receive, _with_headers(send))

    def _refused(self, scope: Scope) -> int | None:
        """The status with which a request is refused; None where it is let through."""
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]

        def given(name: bytes) -> list[str]:
            return [value for key, value in headers if key == name]

        hosts = given(b"host")
        if len(hosts) != 1 or hosts[0] not in self.hosts:
            return 400
        if any(origin != f"http://{hosts[0]}" for origin in given(b"origin")):
            return 403
        if any(site not in ("same-origin", "none") for site in given(b"sec-fetch-site")):
            return 403
        # Pages are empty, and a download's address is its own one-time secret.
        if scope["method"] in ("GET", "HEAD") and not scope["path"].startswith("/api/"):
            return None
        tokens = given(TOKEN)
        good = len(tokens) == 1 and hmac.compare_digest(tokens[0].encode(), self.token.encode())
        return None if good else 401


def _with_headers(send: Send) -> Send:
    async def through(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *HEADERS]
        await send(message)

    return through


async def _answer(send: Send, status: int) -> None:
    body = b'{"error": {"kind": "refused"}}'
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *HEADERS]
    # The body of a refused request is not read.
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
