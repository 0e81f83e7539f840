"""会話: base and trained model side by side."""

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
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ....errors import Reason, ToolkitError, UsageError
from .. import collected
from ..api import answer, blocking, body, text
from ..site import language_of, site_of
from ..workers import Workers
from .chosen import choices, chosen

# Turns of a conversation, and tokens of an answer, that a request may have.
_TURNS, _TOKENS = 400, 32_768
_SIDES = ("base", "tuned")
_ROLES = ("user", "assistant")
# Settings of an answer, with what they are where nobody says.
_SETTINGS: dict[str, Any] = {"max_new_tokens": 512, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "do_sample": True}


class _Lines(Response):
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


def _workers(request: Request) -> Workers:
    """The models of this server's conversations, which end with it."""
    site = site_of(request)
    if site.workers is None:
        site.workers = Workers(Path(tempfile.mkdtemp(prefix="aift-web-")))
    return site.workers


async def _choices(request: Request) -> JSONResponse:
    found = await blocking(choices, site_of(request))
    return answer({"choices": [one.plain() for one in found]})


async def _state(request: Request) -> JSONResponse:
    """Whether the model of a conversation is loaded, and else why it is not any more."""
    choice = await blocking(chosen, site_of(request), dict(request.query_params))
    worker = _workers(request).of(choice.name)
    ended = worker.ended if worker is not None else None
    return answer({"loaded": worker is not None and ended is None, "ended": _both(ended) if ended else None})


def _both(reason: Reason | ToolkitError) -> dict[str, str]:
    return {"ja": reason.ja, "en": reason.en}


async def _answer(request: Request) -> Response:
    values = await body(request)
    choice = await blocking(chosen, site_of(request), values)
    asked = _asked(values)
    seed = values.get("seed")
    given = {
        "asked": asked,
        "seed": seed if isinstance(seed, int) and not isinstance(seed, bool) else random.getrandbits(32),
        "options": _options(values.get("options")),
    }
    return _Lines(_messages(_workers(request), choice.name, given))


async def _messages(workers: Workers, name: str, given: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """What the page is told: loading, the model, pieces of both answers, and how they ended."""
    try:
        yield {"state": "loading"}
        worker = await workers.take(name)
        ready = await worker.ready()
    except ToolkitError as error:
        yield {"refused": _both(error)}
        return
    yield {"state": "answering", "model": ready, "seed": given["seed"]}
    request = {**given, "asked": {side: given["asked"][side] for side in ready["sides"]}}
    async with contextlib.aclosing(worker.answer(request)) as messages:
        async for message in messages:
            if "ended" in message:
                yield {"ended": _both(message["ended"])}
            else:
                yield {key: value for key, value in message.items() if key != "id"}


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    """The question to each side, with the conversation that it has seen.

    Raises:
        UsageError: no conversation, or an empty question.
    """
    question = text(values, "question", most=200_000)
    if not question.strip():
        raise UsageError("質問を入力してください。", "type a question.")
    system = values.get("system")
    if system is not None:
        text(values, "system", most=200_000)
    histories = values.get("history")
    histories = histories if isinstance(histories, dict) else {}
    return {
        side: {"history": _turns(histories.get(side, [])), "question": question, "system": system} for side in _SIDES
    }


def _turns(values: object) -> list[dict[str, str]]:
    """Messages of user and assistant, one after the other.

    Raises:
        UsageError: they are none.
    """
    turns = values if isinstance(values, list) else [None]
    if len(turns) > _TURNS or len(turns) % 2:
        raise UsageError("会話が長すぎるか、壊れています。", "the conversation is too long, or damaged.")
    found = []
    for place, turn in enumerate(turns):
        content = turn.get("content") if isinstance(turn, dict) else None
        if not isinstance(content, str) or turn.get("role") != _ROLES[place % 2]:
            raise UsageError(
                "会話が壊れています。会話を消してやり直してください。", "the conversation is damaged; clear it."
            )
        found.append({"role": _ROLES[place % 2], "content": content})
    return found


def _options(values: object) -> dict[str, Any]:
    """The settings of an answer.

    Raises:
        UsageError, ConfigError: an unknown one, or a value that cannot be.
    """
    from ....models.sampling import validate_sampling

    given = values if isinstance(values, dict) else {}
    unknown = sorted(set(given) - set(_SETTINGS))
    if unknown:
        raise UsageError(f"設定 {unknown[0]} はありません。", f"there is no setting {unknown[0]}.")
    settings = _SETTINGS | given
    if not isinstance(settings["do_sample"], bool):
        raise UsageError("do_sample は true か false です。", "do_sample is true or false.")
    validate_sampling(**settings)
    if settings["max_new_tokens"] > _TOKENS:
        raise UsageError(f"最大トークン数は {_TOKENS:,} までです。", f"max_new_tokens is at most {_TOKENS:,}.")
    return settings


async def _keep(request: Request) -> JSONResponse:
    """Writes an answer down as training data."""
    values = await body(request)
    site, language = site_of(request), language_of(request)
    asked = _asked(values)["tuned"]
    head = [{"role": "system", "content": asked["system"]}] if asked["system"] else []
    conversation = [*head, *asked["history"], {"role": "user", "content": asked["question"]}]
    kind = text(values, "kind")
    row = collected.row_of(kind, conversation, values)
    upload = await blocking(collected.add, site, kind, row, language)
    return answer({"file": upload.id, "shown": upload.shown})


ROUTES = [
    Route("/api/chat/choices", _choices),
    Route("/api/chat/state", _state),
    Route("/api/chat/answer", _answer, methods=["POST"]),
    Route("/api/chat/keep", _keep, methods=["POST"]),
]
