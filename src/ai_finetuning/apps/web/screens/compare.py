"""比較: runs beside each other; their names, and the trash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.describe import settings
from ....errors import ConfigError, InputNotFoundError, UsageError
from ....runs.compare import compare
from ....runs.listing import RunEntry, adopted_first, list_trash, rename, restore, trash
from .. import api
from ..draft import text_of
from ..run_answers import last_answers
from ..site import site_of
from .results import result_of

# Runs beside each other, and questions that are shown.
_MOST, _QUESTIONS = 6, 10


async def _runs(request: Request) -> Response:
    """What can be compared, what is in use first."""
    entries = await api.blocking(site_of(request).list_runs)
    return api.answer({"runs": [_entry(entry) for entry in adopted_first(entries)]})


def _entry(entry: RunEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.path.resolve().name,
        "status": api.status_of(entry.state),
        "model": entry.model,
        "method": entry.method,
        "started": entry.started,
        "before": entry.loss_before,
        "after": entry.loss_after,
        "adopted": entry.adopted is not None,
        "at_work": entry.state.at_work or entry.state.elsewhere,
    }


async def _compared(request: Request) -> Response:
    """Runs beside each other: `?ids=A,B`."""
    ids = [id for id in request.query_params.get("ids", "").split(",") if id][:_MOST]
    if len(set(ids)) < 2:
        raise UsageError("比べる学習を 2 つ以上選んでください。", "choose two runs or more.")
    site, named = site_of(request), [api.valid_id(id) for id in dict.fromkeys(ids)]
    return api.answer(await api.blocking(lambda: _beside([site.run(id) for id in named])))


def _beside(entries: list[RunEntry]) -> dict[str, Any]:
    found = compare([entry.path for entry in entries])
    about = {item.key: {"ja": item.ja, "en": item.en} for item in settings()}
    answers = [last_answers(entry.path) for entry in entries]
    asked = [question for question in answers[0] if sum(question in one for one in answers) > 1][:_QUESTIONS]
    return {
        "runs": [_entry(entry) | {"kind": result_of(entry)["kind"]} for entry in entries],
        "settings": [
            {"key": key, "about": about.get(key), "values": [_shown(value) for value in values]}
            for key, values in found.settings.items()
        ],
        "loss": found.loss,
        "eval_loss": found.eval_loss,
        "answers": [{"question": question, "answers": [one.get(question) for one in answers]} for question in asked],
    }


def _shown(value: Any) -> str:
    return "–" if value is None else text_of(value)[:2000]


async def _rename(request: Request) -> Response:
    site, values = site_of(request), await api.body(request)
    entry = await api.blocking(site.run, api.text(values, "id"))
    folder = await api.blocking(rename, entry.path, api.text(values, "name", most=200))
    return api.answer({"id": _id_of(await api.blocking(site.list_runs, fresh=True), folder), "name": folder.name})


def _id_of(entries: list[RunEntry], folder: Path) -> str | None:
    return next((entry.id for entry in entries if entry.path.resolve() == folder.resolve()), None)


async def _trash(request: Request) -> Response:
    """Moves a run into the trash, where its name was typed."""
    site, values = site_of(request), await api.body(request)
    entry, typed = await api.blocking(site.run, api.text(values, "id")), api.text(values, "name", most=200)
    name = entry.path.resolve().name
    if typed.strip() != name:
        raise ConfigError(
            f"名前が違います。ごみ箱へ移すには「{name}」と入力してください。",
            f"that is another name; to move it into the trash, type {name}.",
        )
    await api.blocking(trash, entry.path)
    await api.blocking(site.list_runs, fresh=True)
    return api.answer({"name": name})


async def _trashed(request: Request) -> Response:
    found = await api.blocking(list_trash, *site_of(request).roots)
    return api.answer({"runs": [{"id": one.id, "name": one.name, "moved": one.moved} for one in found]})


async def _restore(request: Request) -> Response:
    site, values = site_of(request), await api.body(request)
    id = api.valid_id(api.text(values, "id"))
    one = next((one for one in await api.blocking(list_trash, *site.roots) if one.id == id), None)
    if one is None:
        raise InputNotFoundError("ごみ箱にこの学習はありません。", "there is no such run in the trash.")
    folder = await api.blocking(restore, one.path)
    return api.answer({"id": _id_of(await api.blocking(site.list_runs, fresh=True), folder), "name": folder.name})


ROUTES = [
    Route("/api/compare/runs", _runs, methods=["GET"]),
    Route("/api/compare", _compared, methods=["GET"]),
    Route("/api/compare/rename", _rename, methods=["POST"]),
    Route("/api/compare/trash", _trash, methods=["POST"]),
    Route("/api/compare/trash", _trashed, methods=["GET"]),
    Route("/api/compare/restore", _restore, methods=["POST"]),
]
