"""What every screen has in common whose answers come piece by piece: how they are asked, and how they are sent."""

from __future__ import annotations

import contextlib
import json
import random
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...errors import Reason, ToolkitError, UsageError
from .api import text
from .site import site_of
from .workers import Workers

# Characters of a question or a system prompt, and tokens of an answer, that a request may have.
MOST_TEXT, _TOKENS = 200_000, 32_768
# Settings of an answer, with what they are where nobody says.
_SETTINGS: dict[str, Any] = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9, "top_k": 50}


class Lines(Response):
    """Lines of JSON, each sent as it is made. Whoever stops reading ends what makes them."""

    def __init__(self, messages: AsyncGenerator[Mapping[str, Any], None]) -> None:
        super().__init__(media_type="application/x-ndjson")
        del self.headers["content-length"]
        self._messages = messages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                group.cancel_scope.cancel()

            group.start_soon(watch)
            async with contextlib.aclosing(self._messages) as messages:
                async for message in messages:
                    line = json.dumps(message, ensure_ascii=False).encode() + b"\n"
                    await send({"type": "http.response.body", "body": line, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            group.cancel_scope.cancel()


def workers_of(request: Request) -> Workers:
    """The models that this server has loaded, which end with it."""
    site = site_of(request)
    if site.workers is None:
        site.workers = Workers(Path(tempfile.mkdtemp(prefix="aift-web-")))
    return site.workers


def both(reason: Reason | ToolkitError) -> dict[str, str]:
    """A reason in both languages, as the page takes it."""
    return {"ja": reason.ja, "en": reason.en}


def question_of(values: Mapping[str, Any]) -> str:
    """The question that a request asks.

    Raises:
        UsageError: it is empty.
    """
    question = text(values, "question", most=MOST_TEXT)
    if not question.strip():
        raise UsageError("質問を入力してください。", "type a question.")
    return question


def seed_of(values: Mapping[str, Any]) -> int:
    """The seed that a request names, else one that was drawn."""
    seed = values.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) else random.getrandbits(32)


def options_of(values: Mapping[str, Any], *, do_sample: bool) -> dict[str, Any]:
    """The settings of an answer that a request names by `options`.

    Args:
        do_sample: what that is where nobody says.

    Raises:
        UsageError, ConfigError: an unknown one, or a value that cannot be.
    """
    from ...models.sampling import validate_sampling

    named = values.get("options")
    given = named if isinstance(named, dict) else {}
    settings = _SETTINGS | {"do_sample": do_sample} | given
    unknown = sorted(set(given) - {*_SETTINGS, "do_sample"})
    if unknown:
        raise UsageError(f"設定 {unknown[0]} はありません。", f"there is no setting {unknown[0]}.")
    if not isinstance(settings["do_sample"], bool):
        raise UsageError("do_sample は true か false です。", "do_sample is true or false.")
    validate_sampling(**settings)
    if settings["max_new_tokens"] > _TOKENS:
        raise UsageError(f"最大トークン数は {_TOKENS:,} までです。", f"max_new_tokens is at most {_TOKENS:,}.")
    return settings
