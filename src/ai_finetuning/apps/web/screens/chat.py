"""会話: base and trained model side by side."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ....errors import ToolkitError, UsageError
from .. import collected
from ..api import answer, blocking, body, text
from ..site import language_of, site_of
from ..talking import MOST_TEXT, Lines, both, options_of, question_of, seed_of, workers_of
from ..workers import Workers
from .chosen import choices, chosen

# Turns of a conversation that a request may have.
_TURNS = 400
_SIDES = ("base", "tuned")
_ROLES = ("user", "assistant")


async def _choices(request: Request) -> JSONResponse:
    found = await blocking(choices, site_of(request))
    return answer({"choices": [one.plain() for one in found]})


async def _state(request: Request) -> JSONResponse:
    """Whether the model of a conversation is loaded, and else why it is not any more."""
    choice = await blocking(chosen, site_of(request), dict(request.query_params))
    worker = workers_of(request).of(choice.name)
    ended = worker.ended if worker is not None else None
    return answer({"loaded": worker is not None and ended is None, "ended": both(ended) if ended else None})


async def _answer(request: Request) -> Response:
    values = await body(request)
    choice = await blocking(chosen, site_of(request), values)
    given = {"asked": _asked(values), "seed": seed_of(values), "options": options_of(values, do_sample=True)}
    return Lines(_messages(workers_of(request), choice.name, given))


async def _messages(workers: Workers, name: str, given: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """What the page is told: loading, the model, pieces of both answers, and how they ended."""
    try:
        yield {"state": "loading"}
        worker = await workers.take(name)
        ready = await worker.ready()
    except ToolkitError as error:
        yield {"refused": both(error)}
        return
    yield {"state": "answering", "model": ready, "seed": given["seed"]}
    request = {**given, "asked": {side: given["asked"][side] for side in ready["sides"]}}
    async with contextlib.aclosing(worker.answer(request)) as messages:
        async for message in messages:
            if "ended" in message:
                yield {"ended": both(message["ended"])}
            else:
                yield {key: value for key, value in message.items() if key != "id"}


def _asked(values: dict[str, Any]) -> dict[str, Any]:
    """The question to each side, with the conversation that it has seen.

    Raises:
        UsageError: no conversation, or an empty question.
    """
    question = question_of(values)
    system = values.get("system")
    if system is not None:
        text(values, "system", most=MOST_TEXT)
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
