"""Behind the gate of `aift serve`: the names by which clients know the model, and as many new tokens as it has room for.

transformers' server knows its model by the folder, which may lie deep in a cache; clients see and send a short name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError, ToolkitError
from ..models.generation import prompt_tokens
from .gate import App, Receive, Scope, Send, again

# Where each route says how long an answer may be; the first name is written where a request says nothing.
_LENGTHS = {
    "/v1/chat/completions": ("max_tokens", "max_completion_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
}
# What transformers' server takes where neither request nor model say anything.
_DEFAULT = 1024
_ALIAS = re.compile(r"[\w.][\w.+:/@-]{0,99}")


def short_name(name: str) -> str:
    """What clients call a model: the last part of its id, or its folder's name."""
    path = Path(name)
    last = (path.resolve().name if path.is_dir() else re.split("[/:]", name)[-1]) or "model"
    return last if _ALIAS.fullmatch(last) else re.sub(r"[^\w.+-]", "-", last)[:100]


def validate_alias(alias: str) -> str:
    """The alias.

    Raises:
        ConfigError: it has a blank or a character that clients and shells would trip over.
    """
    if not _ALIAS.fullmatch(alias):
        raise ConfigError(
            f"--alias が {alias!r} です。文字、数字、. _ - : / @ だけの 100 文字以内の名前にしてください。",
            f"--alias is {alias!r}; use letters, digits and . _ - : / @ only, 100 at most.",
        )
    return alias


def room_of(tokenizer: Any, positions: int | None) -> Callable[[str, dict[str, Any]], int | None]:
    """A function of (route, request): how many new tokens fit behind its prompt, 0 or less where the prompt does not fit;
    None where that is not known.
    """

    def room(route: str, values: dict[str, Any]) -> int | None:
        if positions is None:
            return None
        try:
            if route == "/v1/completions":
                return positions - len(tokenizer.encode(str(values["prompt"])))
            asked = values["messages"] if route == "/v1/chat/completions" else _messages(values)
            return positions - prompt_tokens(tokenizer, [_as_text(item) for item in asked])
        except (ToolkitError, KeyError, TypeError, ValueError):
            return None  # the server says what is wrong with the request

    return room


def _messages(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation of a request to /v1/responses."""
    given = values["input"]
    turns = [{"role": "user", "content": given}] if isinstance(given, str) else list(given)
    return [{"role": "system", "content": values["instructions"]}, *turns] if values.get("instructions") else turns


def _as_text(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is one text; clients may send it in parts."""
    content = message["content"]
    if not isinstance(content, str):
        content = "\n".join(part["text"] for part in content)
    return {**message, "content": content}


@dataclass(frozen=True)
class Named:
    """An ASGI application that hands requests on under the folder's name, and answers under a short one.

    Attributes:
        app: transformers' server.
        folder: the name by which it knows its model.
        names: what clients may say; the first is what they are told.
        max_tokens: most tokens of an answer.
        room: from room_of.
        ready: called once the server answers.
    """

    app: App
    folder: str
    names: tuple[str, ...]
    max_tokens: int
    room: Callable[[str, dict[str, Any]], int | None]
    ready: Callable[[], object]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._saying(send))
            return
        if scope.get("method") == "POST":
            body = await _whole(receive)
            try:
                body = self._body(scope["path"], body)
            except _Refused as refused:
                await _answer(send, {"error": {"message": str(refused), "type": "invalid_request_error"}})
                return
            receive = again(body, receive)
        await self.app(scope, receive, _Renaming(send, self.folder, self.names[0]))

    def _saying(self, send: Send) -> Send:
        async def said(message: MutableMapping[str, Any]) -> None:
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                self.ready()

        return said

    def _body(self, route: str, body: bytes) -> bytes:
        try:
            values = json.loads(body)
        except (ValueError, RecursionError):
            return body
        if not isinstance(values, dict):
            return body
        asked = values.get("model", self.folder)
        if asked not in (self.folder, *self.names):
            raise _Refused(f"this server is pinned to {self.names[0]!r}; requested {asked!r}")
        values["model"] = self.folder
        lengths = _LENGTHS.get(route, ())
        room = self.room(route, values) if lengths else None
        if room is not None:
            if room < 1:
                raise _Refused(
                    f"the prompt is {1 - room} tokens too long for this model, which needs a position for the answer; "
                    "shorten it"
                )
            given = [values[name] for name in lengths if isinstance(values.get(name), int)]
            most = min([room, *given] if given else [room, _DEFAULT, self.max_tokens])
            for name in lengths if given else lengths[:1]:
                if name in values or not given:
                    values[name] = most
        return json.dumps(values).encode()


class _Refused(Exception):
    """A request that the model cannot answer, with the reason for the client."""


class _Renaming:
    """Sends the server's answers with the short name in place of the folder's."""

    def __init__(self, send: Send, folder: str, name: str) -> None:
        self._send = send
        self._start: MutableMapping[str, Any] | None = None  # of an answer of known length, until its body is whole
        self._body = b""
        # As JSON strings, closing quotation mark included: no text of an answer is one, as its own are escaped there.
        self._pairs = [(_quoted(known), _quoted(name)) for known in (f"{folder}@main", folder)]

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            if any(key.lower() == b"content-length" for key, _ in message["headers"]):
                self._start = message
                return
        elif message["type"] == "http.response.body" and self._start is not None:
            self._body += message.get("body", b"")
            if not message.get("more_body", False):
                body = self._renamed(self._body)
                headers = [
                    (key, str(len(body)).encode() if key.lower() == b"content-length" else value)
                    for key, value in self._start["headers"]
                ]
                await self._send({**self._start, "headers": headers})
                await self._send({**message, "body": body})
            return
        elif message["type"] == "http.response.body":
            message = {**message, "body": self._renamed(message.get("body", b""))}
        await self._send(message)

    def _renamed(self, body: bytes) -> bytes:
        for known, name in self._pairs:
            body = body.replace(known, name)
        return body


def _quoted(text: str) -> bytes:
    return json.dumps(text, ensure_ascii=False).encode()


async def _whole(receive: Receive) -> bytes:
    """A request's body; the gate has limited its size."""
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def _answer(send: Send, values: dict[str, Any]) -> None:
    body = json.dumps(values, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 400, "headers": headers})
    await send({"type": "http.response.body", "body": body})
