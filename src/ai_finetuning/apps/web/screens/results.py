"""結果: what a run has come to: its verdict, answers before and after, numbers, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.run_folder import METRICS, REPORT
from ....errors import InputNotFoundError, UsageError
from ....evaluation.figures import figures_of
from ....evaluation.returned import Best, best_of, measuring, returned_of, take_best, take_last
from ....evaluation.verdict import Verdict, verdict
from ....messages import displayable
from ....runs.adopted import adopt, adopted_before, adopted_since, doubt_of, release
from ....runs.folder import read_run, recorded_settings
from ....runs.launch import resume
from ....runs.listing import RunEntry
from ....runs.rows import loss_of, step_of
from ....runs.state import is_being_judged
from ....runs.weights import weight_names
from .. import api, tickets
from ..run_answers import PAGE, answers_of, read_rows, shown
from ..setting_names import both_with_labels
from ..site import site_of

# How the verdict of a run is called on the page; of a run without one how its losses ended.
_DECIDED = {"adopt": "better", "reject": "worse"}
_DECISIONS = ("adopt", "hold", "reject")
_EPOCHS = 10_000


async def _result(request: Request) -> Response:
    site, id = site_of(request), request.path_params["id"]
    return api.answer(await api.blocking(lambda: result_of(site.run(id))))


def result_of(entry: RunEntry) -> dict[str, Any]:
    """Everything of a run but its answers."""
    run = read_run(entry.path)
    rows = read_rows(entry.path / METRICS)
    found, result = _mapping(run.get("verdict")), _mapping(run.get("result"))
    losses = verdict([row for row in rows if step_of(row.get("step")) is not None], step_of(result.get("saved_step")))
    settings = recorded_settings(entry.path)
    return {
        "id": entry.id,
        "name": entry.path.name,
        "folder": str(entry.path.absolute()),
        "status": api.status_of(entry.state),
        "judged": is_being_judged(run),
        "model": entry.model,
        "method": entry.method,
        "reason": None if entry.state.reason is None else displayable(entry.state.reason),
        "kind": kind_of(found, losses),
        "decision": found.get("result") if found.get("result") in _DECISIONS else None,
        "why": _both(found.get("why")),
        "advice": None if (advice := _both(found.get("advice"))) is None else both_with_labels(advice),
        "sentence": {"ja": losses.sentence.ja, "en": losses.sentence.en},
        "points": {name: _point(getattr(losses, name)) for name in ("before", "best", "last", "saved")},
        "tasks": _tasks(found),
        "language": _language(found),
        "not_measured": [told for item in _items(found.get("not_measured")) if (told := _both(item))],
        "figures": _figures(result),
        "facts": _facts(result),
        "epochs": _mapping(settings.get("training")).get("num_epochs") or 3,
        "trains_all": entry.method in ("full", "pretrain"),
        "report": (entry.path / REPORT).is_file(),
        **_choice(entry, run),
    }


def _choice(entry: RunEntry, run: Mapping[str, Any]) -> dict[str, Any]:
    """What can be chosen of the run's weights: whether they are in use, and which of them are the result."""
    free = not entry.state.at_work and not is_being_judged(run)
    best, before, doubt = best_of(entry.path, run), returned_of(run), doubt_of(run)
    told = before.verdict if before is not None else {}
    return {
        "adoptable": free and isinstance(run.get("result"), dict) and bool(weight_names(entry.path)),
        "adopted": adopted_since(run) is not None,
        "adopted_before": adopted_before(run),
        "doubt": None if doubt is None else {"ja": doubt.ja, "en": doubt.en},
        "best": asdict(best) if free and isinstance(best, Best) else None,
        "returned": None
        if before is None
        else {
            "step": before.step,
            "last_step": before.last_step,
            "unfinished": before.unfinished,
            "decision": told.get("result") if told.get("result") in _DECISIONS else None,
            "why": _both(told.get("why")),
            "measure": measuring(entry.path),
        },
    }


def kind_of(found: Mapping[str, Any], losses: Verdict) -> str:
    """`better`, `unchanged`, `worse`, `overfitted` or `unknown`: by the verdict on answers where there is one, else by the
    losses. A model that is held back has improved only where what it was made for got better significantly.
    """
    decision = found.get("result")
    if decision in _DECIDED:
        return _DECIDED[decision]
    if decision == "hold":
        primary = [_mapping(task) for task in _mapping(found.get("tasks")).values()]
        words = [task.get("finding") for task in primary if task.get("primary") is True]
        return "better" if "improved" in words else "unchanged"
    return {"diverged": "worse"}.get(losses.kind, losses.kind)


def _point(point: Any) -> dict[str, Any] | None:
    return None if point is None else {"step": point.step, "loss": point.loss}


def _tasks(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What was measured before and after: name, items, both means, the finding's word."""
    differences = _mapping(found.get("differences"))
    return [
        {
            "name": str(name)[:60],
            "metric": str(task.get("metric") or "")[:60],
            "items": step_of(task.get("items")),
            "before": loss_of(task.get("before")),
            "after": loss_of(task.get("after")),
            "finding": str(task.get("finding") or "")[:40],
            "lower": _mapping(differences.get(name)).get("lower_is_better") is True,
        }
        for name, values in _mapping(found.get("tasks")).items()
        if (task := _mapping(values))
    ]


def _language(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How often answers have a fault, before and after."""
    from ....evaluation.language import FAULTS

    return [
        {
            "ja": FAULTS[fault].title.ja,
            "en": FAULTS[fault].title.en,
            "before": loss_of(item.get("before")),
            "after": loss_of(item.get("after")),
            "veto": item.get("veto") is True,
        }
        for item in map(_mapping, _items(found.get("language")))
        if (fault := str(item.get("fault"))) in FAULTS
    ]


def _figures(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The numbers of the evaluation before the first step and of the saved weights."""
    before, after = (_mapping(result.get(name)) for name in ("held_out_before", "held_out_after"))
    return [
        {"ja": title.ja, "en": title.en, "before": loss_of(before.get(key)), "after": loss_of(after.get(key))}
        for title, key in figures_of([before, after])
        if loss_of(after.get(key)) is not None
    ]


def _facts(result: Mapping[str, Any]) -> dict[str, float | None]:
    names = ("steps", "epochs", "seconds", "tokens", "tokens_per_second", "peak_memory_gb", "train_loss_last_10_steps")
    return {name: _number(result.get(name)) for name in names}


async def _answers(request: Request) -> Response:
    """A page of the answers: `?from=N&failed=1`."""
    entry = await api.blocking(site_of(request).run, request.path_params["id"])
    start = _natural(request.query_params.get("from", "0"))
    every = await api.blocking(answers_of, entry.path)
    chosen = [one for one in every if one.failed] if request.query_params.get("failed") == "1" else every
    return api.answer(
        {
            "total": len(chosen),
            "failed": sum(one.failed for one in every),
            "all": len(every),
            "answers": [shown(one) for one in chosen[start : start + PAGE]],
        }
    )


async def _report(request: Request) -> Response:
    """A one-time address for the report: it is a page of a stranger's words, so that it is stored, never shown here."""
    entry = await api.blocking(site_of(request).run, request.path_params["id"])
    file = entry.path / REPORT
    if file.is_symlink() or not file.is_file():
        raise InputNotFoundError("この学習には報告書がありません。", "this run has no report.")
    return api.answer({"address": tickets.ticket(request, file, f"{entry.path.name}-{REPORT}")})


async def _more(request: Request) -> Response:
    """Goes on with a run that has ended, for more epochs."""
    site = site_of(request)
    entry = await api.blocking(site.run, request.path_params["id"])
    epochs = (await api.body(request)).get("epochs")
    if type(epochs) is not int or not 0 < epochs <= _EPOCHS:
        raise UsageError(
            f"エポック数は 1 から {_EPOCHS:,} の整数です。", f"epochs are a whole number from 1 to {_EPOCHS:,}."
        )
    async with site.locks[f"run {entry.id}"]:
        await api.blocking(resume, entry.path, [f"num_epochs={epochs}"], wait=True)
    return api.answer({"id": entry.id})


async def _adopt(request: Request) -> Response:
    """Marks its model as the one in use, or no longer."""
    return await _changed(request, adopt, release)


async def _best(request: Request) -> Response:
    """Makes its best weights the result, or the last ones again."""
    return await _changed(request, take_best, take_last)


async def _changed(request: Request, work: Callable[[Path], Any], undo: Callable[[Path], Any]) -> Response:
    """Does what is asked with a run, and tells how it is then."""
    site, values = site_of(request), await api.body(request)
    entry = await api.blocking(site.run, request.path_params["id"])
    async with site.locks[f"run {entry.id}"]:
        await api.blocking(undo if values.get("undo") is True else work, entry.path)
        await api.blocking(lambda: site.list_runs(fresh=True))
        return api.answer(await api.blocking(lambda: result_of(site.run(entry.id))))


def _both(value: Any) -> dict[str, str] | None:
    """A text in both languages from a file of anybody's."""
    told = _mapping(value)
    return {name: str(told[name])[:2000] for name in ("ja", "en")} if {"ja", "en"} <= told.keys() else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _items(value: Any) -> list[Any]:
    return value[:100] if isinstance(value, list) else []


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _natural(text: str) -> int:
    if not text.isdecimal() or len(text) > 9:
        raise UsageError("from は 0 以上の整数です。", "from is a whole number of at least 0.")
    return int(text)


ROUTES = [
    Route("/api/results/{id}", _result, methods=["GET"]),
    Route("/api/results/{id}/answers", _answers, methods=["GET"]),
    Route("/api/results/{id}/report", _report, methods=["POST"]),
    Route("/api/results/{id}/more", _more, methods=["POST"]),
    Route("/api/results/{id}/adopt", _adopt, methods=["POST"]),
    Route("/api/results/{id}/best", _best, methods=["POST"]),
]
