"""Requests and answers of the page: JSON of a bounded size, refusals with both languages, work beside the event loop."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio.to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ...errors import (
    CheckpointError,
    ConfigError,
    DataError,
    HubError,
    InputNotFoundError,
    ModelError,
    RunLockedError,
    StorageError,
    ToolkitError,
    UsageError,
    refused_by_system,
)
from ...messages import printable, trace

if TYPE_CHECKING:
    from ...runs.state import State, Status

P = ParamSpec("P")
T = TypeVar("T")
# Bytes of a request's JSON.
MOST = 1 << 20
ID = re.compile(r"[a-z0-9-]{1,64}")
STATUS: dict[type[ToolkitError], int] = {
    UsageError: 400,
    InputNotFoundError: 404,
    RunLockedError: 409,
    DataError: 422,
    ConfigError: 422,
    ModelError: 422,
    CheckpointError: 422,
    HubError: 503,
    StorageError: 507,
}


def answer(value: Any, status: int = 200) -> JSONResponse:
    """A value as JSON; numbers that JSON has no word for (NaN of a loss) become null."""
    try:
        return JSONResponse(value, status)
    except ValueError:
        return JSONResponse(_finite(value), status)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def refusal(error: ToolkitError) -> JSONResponse:
    """A refusal as the page shows it."""
    status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)
    told: dict[str, Any] = {"ja": printable(error.ja), "en": printable(error.en), "kind": type(error).__name__}
    if isinstance(error, ConfigError):
        told["problems"] = [{"key": one.key, "ja": one.ja, "en": one.en} for one in error.problems]
    return JSONResponse({"error": told}, status)


# What a browser shows at an address that is none of the page's.
_MISSING = """<!doctype html>
<html lang="ja">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>aift</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/static/app.css">
<main>
<p>{ja} <a href="/">最初のページへ</a></p>
<p lang="en">{en} <a href="/">To the first page</a></p>
</main>
"""


async def refuse(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in an error."""
    if isinstance(error, ToolkitError):
        return refusal(error)
    if isinstance(error, ClientDisconnect):
        return Response(status_code=400)
    if isinstance(error, HTTPException):
        ja, en = "このページはありません。", "there is no such page."
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(_MISSING.format(ja=ja, en=en), error.status_code)
        return JSONResponse({"error": {"ja": ja, "en": en, "kind": "http"}}, error.status_code)
    by_system = refused_by_system(error)
    if by_system is not None:
        return refusal(by_system)
    print(printable(trace(error, for_files=False)), end="", file=sys.stderr)
    name = type(error).__name__
    ja = f"内部エラー: {name}。サーバーを始めたターミナルの表示を添えて報告してください。"
    en = f"internal error: {name}. Please report it with what the server's terminal shows."
    return JSONResponse({"error": {"ja": ja, "en": en, "kind": name}}, 500)


async def body(request: Request, most: int = MOST) -> dict[str, Any]:
    """The JSON object that a request brings.

    Raises:
        UsageError: it is none, or larger than `most` bytes.
    """
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise UsageError(
                f"送られた内容が大きすぎます（{most:,} バイトまで）。", f"more than {most:,} bytes were sent."
            )
        parts.append(part)
    try:
        value = json.loads(b"".join(parts) or b"{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UsageError("送られた内容が JSON のオブジェクトではありません。", "what was sent is no JSON object.")
    return value


def text(values: Mapping[str, Any], name: str, default: str | None = None, most: int = 10_000) -> str:
    """A text of a request's JSON.

    Raises:
        UsageError: it is missing (without a default), no text, or longer than `most` characters.
    """
    value = values.get(name, default)
    if not isinstance(value, str) or len(value) > most:
        raise UsageError(
            f"{name} は {most:,} 文字までの文字列です。", f"{name} is a text of at most {most:,} characters."
        )
    return value


def valid_id(id: str) -> str:
    """An id that may name something in a folder.

    Raises:
        UsageError: it has other characters than a-z, 0-9 and hyphens, or none, or more than 64.
    """
    if not ID.fullmatch(id):
        raise UsageError("ID は a-z、0-9、ハイフンだけです。", "an id has only a-z, 0-9 and hyphens.")
    return id


def status_of(state: State) -> Status:
    """What the page calls a run: one whose process is gone without that anybody asked for it has failed, though it
    can go on as one that was stopped, which `aift runs` calls it.
    """
    from ...runs.state import GONE

    return "failed" if state.reason == str(GONE) else state.status


async def blocking(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What a function returns that reads disks or computes, without holding up other requests."""
    return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs))
