"""実行中: a run as its files tell it, whoever started it; and what is asked of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....errors import UsageError, without_secrets
from ....messages import ANSI, displayable
from ..api import answer, blocking, body, status_of, text
from ..site import Site, site_of

# Points of one answer: above, the lowest and the highest of each of so many parts of it.
MOST_POINTS = 2000
_CONFIG_BYTES, _TEXT = 1 << 18, 2000


async def _facts(request: Request) -> Response:
    """What does not change while it trains: names, settings, how it is started again."""
    return answer(await blocking(_facts_of, site_of(request), request.path_params["id"]))


def _facts_of(site: Site, id: str) -> dict[str, Any]:
    from ....config.run_folder import CONFIG
    from ....messages import argument
    from ....system.files import read_bounded

    entry = site.run(id)
    try:
        settings = read_bounded(entry.path / CONFIG, _CONFIG_BYTES).decode("utf-8", "replace")
    except (OSError, ValueError):
        settings = ""
    return {
        "id": entry.id,
        "name": entry.path.resolve().name,
        "folder": argument(entry.path.resolve()),
        "model": entry.model,
        "method": entry.method,
        "started": entry.started,
        "settings": without_secrets(settings),
    }


async def _metrics(request: Request) -> Response:
    """What is new since a cursor: points, state, phase, time left."""
    site, id = site_of(request), request.path_params["id"]
    return answer(await blocking(_new, site, id, request.query_params.get("after", "")))


def _new(site: Site, id: str, cursor: str) -> dict[str, Any]:
    from ....runs.devices import occupants
    from ....runs.folder import read_run
    from ....runs.rows import loss_of, step_of, steps_of
    from ....runs.state import GONE, is_being_judged
    from ....runs.watch import watch

    folder = site.folder(id)
    update = watch(folder, cursor)
    steps = steps_of(update.rows)
    evaluated = [
        [step, loss]
        for row in update.rows
        if (step := step_of(row.get("step"))) is not None and (loss := loss_of(row.get("eval_loss"))) is not None
    ]
    last = steps[-1] if steps else {}
    state = update.state
    return {
        "points": thinned([(row["step"], float(row["loss"])) for row in steps]),
        "evaluations": evaluated,
        "cursor": update.cursor,
        "reset": update.reset,
        "more": update.more,
        "status": status_of(state),
        "phase": state.phase,
        "since": state.since,
        "reason": None if state.reason is None else displayable(state.reason),
        "gone": state.reason == str(GONE),
        "elsewhere": state.elsewhere,
        "judged": state.status == "completed" and is_being_judged(read_run(folder)),
        "seconds_left": update.seconds_left,
        "last": {key: last.get(key) for key in ("step", "total_steps", "epoch", "learning_rate", "time")}
        if last
        else None,
        "before": _before(site, folder, occupants()) if state.status == "waiting" else [],
    }


def _before(site: Site, folder: Path, queue: list[Any]) -> list[dict[str, Any]]:
    """The runs, jobs and APIs for which a run waits, as the queue of devices has them."""
    from ....runs import jobs

    place = next(
        (at for at, one in enumerate(queue) if one.folder and Path(one.folder).resolve() == folder.resolve()), None
    )
    mine = set(queue[place].devices) if place is not None else set()
    ids = {entry.path.resolve(): entry.id for entry in site.list_runs()}
    found = []
    for at, one in enumerate(queue):
        if (
            at != place
            and (not one.waits or (place is not None and at < place))
            and (not mine or mine & set(one.devices))
        ):
            path = Path(one.folder)
            api = jobs.kind_of(path) == jobs.API
            found.append({"id": ids.get(path.resolve()), "name": path.name or "?", "api": api})
    return found


def thinned(points: list[tuple[int, float]], most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many points, in order: of each part of the line its lowest and its highest, so that no peak is lost."""
    if len(points) <= most:
        return points
    parts = most // 2
    found = []
    for at in range(parts):
        part = points[at * len(points) // parts : (at + 1) * len(points) // parts]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        found += sorted(ends)
    return found


async def _samples(request: Request) -> Response:
    """Answers to the fixed questions, as they were given at evaluations."""
    return answer(await blocking(_samples_of, await _folder(request)))


async def _folder(request: Request) -> Path:
    """The run's folder; where it is not known, all runs are read."""
    return await blocking(site_of(request).folder, request.path_params["id"])


def _samples_of(folder: Path) -> dict[str, Any]:
    from ....config.run_folder import SAMPLES
    from ....runs.rows import last_rows, rows_of, step_of
    from ....runs.watch import MOST, read_whole_lines

    content, _, _, _, more = read_whole_lines(folder / SAMPLES, "")
    kept = ("question", "expected", "answer")
    # Of many evaluations the first ones and the last ones.
    found = rows_of(content) + (last_rows(folder / SAMPLES, MOST) if more else [])
    rows = [row for row in found if step_of(row.get("step")) is not None]
    return {"rows": [{"step": row["step"]} | {key: _text(row.get(key)) for key in kept} for row in rows]}


def _text(value: object) -> str | None:
    return None if value is None else (value if isinstance(value, str) else json.dumps(value))[:_TEXT]


async def _log(request: Request) -> Response:
    """What it has said since a cursor, without colours and secrets."""
    from ....runs.watch import console

    said, cursor = await blocking(console, await _folder(request), request.query_params.get("after", ""))
    # A bar that is drawn over itself: only what it ended with.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in ANSI.sub("", said).split("\n")]
    return answer({"text": displayable("\n".join(lines)), "cursor": cursor})


async def _stop(request: Request) -> Response:
    """Asks it to stop: save, best, now."""
    from ....runs.stop import HOWS, stop

    asked = text(await body(request), "how")
    how = next((known for known in HOWS if known == asked), None)
    if how is None:
        raise UsageError("how は save、best、now のどれかです。", "how is one of save, best, now.")
    said = await blocking(stop, await _folder(request), how)
    return answer({"ja": said.ja, "en": said.en})


async def _resume(request: Request) -> Response:
    """Goes on with it; it waits for its device."""
    from ....runs.launch import resume

    await body(request)
    await blocking(resume, await _folder(request), wait=True)
    return answer({})


ROUTES = [
    Route("/api/runs/{id}", _facts),
    Route("/api/runs/{id}/metrics", _metrics),
    Route("/api/runs/{id}/samples", _samples),
    Route("/api/runs/{id}/log", _log),
    Route("/api/runs/{id}/stop", _stop, methods=["POST"]),
    Route("/api/runs/{id}/resume", _resume, methods=["POST"]),
]
