"""比較: runs beside each other; the same question to all of them; their names, and the trash."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.describe import settings
from ....errors import ConfigError, InputNotFoundError, ToolkitError, UsageError
from ....runs.compare import compare
from ....runs.listing import RunEntry, adopted_first, list_trash, rename, restore, trash
from .. import api, uploads
from ..beside import answers, turns_of
from ..draft import text_of
from ..job_routes import refuse_used
from ..run_answers import last_answers
from ..site import Site, site_of
from ..talking import MOST_TEXT, Lines, options_of, question_of, seed_of, workers_of
from .chosen import Choice, chosen
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
    site, named = site_of(request), _ids(request.query_params.get("ids", "").split(","))
    return api.answer(await api.blocking(lambda: _beside(site, [site.run(id) for id in named])))


def _ids(given: object) -> list[str]:
    """The runs that a request names, each once.

    Raises:
        UsageError: one that is no id, or fewer than two.
    """
    ids = [api.valid_id(str(id)) for id in given if id] if isinstance(given, list) else []
    ids = list(dict.fromkeys(ids))[:_MOST]
    if len(ids) < 2:
        raise UsageError("比べる学習を 2 つ以上選んでください。", "choose two runs or more.")
    return ids


def _beside(site: Site, entries: list[RunEntry]) -> dict[str, Any]:
    found, names = compare([entry.path for entry in entries]), _data_names(site)
    about = {item.key: {"ja": item.ja, "en": item.en} for item in settings()}
    saved = [last_answers(entry.path) for entry in entries]
    asked = [question for question in saved[0] if sum(question in one for one in saved) > 1][:_QUESTIONS]
    return {
        "runs": [_entry(entry) | {"kind": result_of(entry)["kind"]} for entry in entries],
        "settings": [
            {"key": key, "about": about.get(key), "values": [names.get(value, value) for value in map(_shown, values)]}
            for key, values in found.settings.items()
        ],
        "loss": found.loss,
        "eval_loss": found.eval_loss,
        "answers": [{"question": question, "answers": [one.get(question) for one in saved]} for question in asked],
        "ask": _askable(site, [entry.id for entry in entries]),
    }


def _data_names(site: Site) -> dict[str, str]:
    """What data that was brought is called, by the files of it that settings name; by its id too where a name is not one's
    alone.
    """
    found = uploads.list_uploads(site)
    often = Counter(upload.shown for upload in found)
    return {
        str(file.absolute()): upload.shown if often[upload.shown] == 1 else f"{upload.shown} ({upload.id})"
        for upload in found
        for file in (upload.file, upload.path, upload.evaluated)
        if file is not None
    }


def _askable(site: Site, ids: list[str]) -> dict[str, Any]:
    """What can be asked now, in which turns the models are loaded for it, and why others cannot be asked."""
    found, not_these = _answering(site, ids)
    return {
        "runs": [one.plain() for one in found],
        "turns": [[one.id for one in turn] for turn in turns_of(found)],
        "not": not_these,
    }


def _answering(site: Site, ids: list[str]) -> tuple[list[Choice], dict[str, dict[str, str]]]:
    """The runs that have a model, and of the others by id why they have none."""
    found, others = [], {}
    for id in ids:
        try:
            found.append(chosen(site, {"run": id}))
        except ToolkitError as error:
            others[id] = {"ja": error.ja, "en": error.en}
    return found, others


async def _answer(request: Request) -> Response:
    """One question to all of the runs that can answer; the same seed for each, and greedy where nobody says otherwise."""
    site, values = site_of(request), await api.body(request)
    ids, question = _ids(values.get("ids")), question_of(values)
    given = {"seed": seed_of(values), "options": options_of(values, do_sample=False)}
    named = values.get("systems")
    systems = named if isinstance(named, dict) else {}
    asked: dict[str, dict[str, Any]] = {id: {"history": [], "question": question, "system": None} for id in ids}
    for id in ids:
        if id in systems:
            asked[id]["system"] = api.text(systems, id, most=MOST_TEXT)
    found, _ = await api.blocking(_answering, site, ids)
    if not found:
        raise UsageError("質問できる学習がありません。", "none of these runs can be asked.")
    turns = await api.blocking(turns_of, found)
    return Lines(answers(workers_of(request), turns, asked, given))


def _shown(value: Any) -> str:
    return "–" if value is None else text_of(value)[:2000]


async def _rename(request: Request) -> Response:
    site, values = site_of(request), await api.body(request)
    entry = await api.blocking(site.run, api.text(values, "id"))
    await api.blocking(_refuse_used, site, entry)
    folder = await api.blocking(rename, entry.path, api.text(values, "name", most=200))
    return api.answer({"id": _id_of(await api.blocking(site.list_runs, fresh=True), folder), "name": folder.name})


def _refuse_used(site: Site, entry: RunEntry) -> None:
    """Refuses to move a run whose model a job reads."""
    refuse_used(
        site,
        entry.path.resolve().name,
        lambda about: {"by": "run", "id": entry.id}.items() <= dict(about.get("of") or {}).items(),
    )


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
    await api.blocking(_refuse_used, site, entry)
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
    Route("/api/compare/answer", _answer, methods=["POST"]),
    Route("/api/compare/rename", _rename, methods=["POST"]),
    Route("/api/compare/trash", _trash, methods=["POST"]),
    Route("/api/compare/trash", _trashed, methods=["GET"]),
    Route("/api/compare/restore", _restore, methods=["POST"]),
]
