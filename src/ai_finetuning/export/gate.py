"""What stands between `aift serve` and whoever can reach its port: other programs and web pages of this machine.

A page of the web can send requests to 127.0.0.1, and by DNS rebinding under a name of its own (CVE-2024-28224 was that
in another server). So a request is answered only under the names of this machine, from no page of another site, for the
routes of answering, in the size and length that were allowed, and with the key where one was set.
"""

from __future__ import annotations

import hmac
import json
import os
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

NAMES = frozenset(("127.0.0.1", "localhost", "::1"))
ROUTES = frozenset(
    (
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
    )
)
MAX_BODY = 2**20
# How many seconds after the last request a generation that goes on may hold the process.
_LAST_SECONDS = 1.0
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")


@dataclass(frozen=True)
class Rules:
    """What the gate lets through.

    Attributes:
        model: the one that is served.
        max_tokens: most tokens of an answer.
        key: what `Authorization: Bearer` has to name; None asks for none.
        aliases: further names of the same model, which are listed as well.
    """

    model: str
    max_tokens: int
    key: str | None = None
    aliases: tuple[str, ...] = ()


class Refusal(Exception):
    """A request that is not let through: HTTP status and the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Gate:
    """An ASGI application that answers what its rules refuse, and hands everything else to the server's."""

    app: App
    rules: Rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, _ending(receive), send)
            return
        try:
            if scope["type"] != "http":
                raise Refusal(403, "only HTTP is served")
            self._check(scope)
            if (scope["method"], scope["path"]) == ("GET", "/v1/models"):
                names = (self.rules.model, *self.rules.aliases)
                models = [{"id": name, "object": "model", "owned_by": "aift"} for name in names]
                await _answer(send, 200, {"object": "list", "data": models})
                return
            if scope["method"] == "POST":
                body = await _body(receive)
                self._check_length(body)
                receive = again(body, receive)
        except Refusal as refusal:
            if scope["type"] == "http":
                await _answer(send, refusal.status, {"error": {"message": str(refusal), "type": "refused"}})
            else:
                await send({"type": "websocket.close", "code": 1008})
            return
        await self.app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = [(name.lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) != 1 or _name(f"//{hosts[0]}") not in NAMES:
            raise Refusal(400, "this server answers under 127.0.0.1 and localhost only")
        if any(name == b"origin" and _name(value) not in NAMES for name, value in headers):
            raise Refusal(403, "this server answers no page of another site")
        given = [value for name, value in headers if name == b"authorization"]
        key = self.rules.key
        if key is not None and not any(hmac.compare_digest(item.encode(), f"Bearer {key}".encode()) for item in given):
            raise Refusal(401, "this server asks for its key: Authorization: Bearer KEY")
        if (scope["method"], scope["path"]) not in ROUTES:
            raise Refusal(404, "not a route of this server: " + ", ".join(sorted(path for _, path in ROUTES)))
        length = next((value for name, value in headers if name == b"content-length"), "0")
        if not length.isdigit() or int(length) > MAX_BODY:
            raise Refusal(413, f"a request may have {MAX_BODY} bytes")

    def _check_length(self, body: bytes) -> None:
        """Refuses answers that would be too long, and more of them than one; what is no JSON the server refuses."""
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            return
        if not isinstance(values, dict):
            return
        for name in _LENGTHS:
            asked = values.get(name)
            if isinstance(asked, int | float) and asked > self.rules.max_tokens:
                raise Refusal(400, f"{name} may be at most {self.rules.max_tokens} (aift serve --max-tokens)")
        if values.get("n") not in (None, 1) or values.get("best_of") not in (None, 1):
            raise Refusal(400, "one answer a request: n must be 1")


def _name(address: str) -> str | None:
    """The host that an address names; None for what is no address."""
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


async def _body(receive: Receive) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise Refusal(400, "the request ended before its body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > MAX_BODY:
            raise Refusal(413, f"a request may have {MAX_BODY} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, to be read by the application; then what comes after it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return replayed


def _ending(receive: Receive) -> Receive:
    """Ends the process soon after the server has, whatever a thread of it still generates."""

    async def watched() -> MutableMapping[str, Any]:
        message = await receive()
        if message["type"] == "lifespan.shutdown":
            timer = threading.Timer(_LAST_SECONDS, os._exit, (0,))
            timer.daemon = True
            timer.start()
        return message

    return watched


async def _answer(send: Send, status: int, values: dict[str, Any]) -> None:
    body = json.dumps(values).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
