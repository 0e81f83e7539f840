"""書き出し: a run or a model as what other programs read, by the verbs of the command line as jobs that nobody owns."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ....errors import StorageError, UsageError
from ....system.files import is_plain, read_bounded
from .. import job_routes, serving
from ..api import answer, blocking, body
from ..site import Site, language_of, site_of
from .chosen import Choice, choices, chosen, slug

if TYPE_CHECKING:
    from ....runs.jobs import Job, Step

KIND = job_routes.EXPORT
_MERGED, _BENCH = "merge.json", "bench"
_LARGEST = 4 << 20
_TYPES = ("q8_0", "f16", "bf16", "f32")
_BITS = (4, 8)
# Timed passes of a comparison: its quality is what counts here.
_PASSES = "5"
# Tries for a free name.
_TRIES = 1000


@dataclass(frozen=True)
class _Plan:
    """What an export does.

    Attributes:
        steps: the commands.
        made: what they write, by what it is called on the page.
    """

    steps: list[Step]
    made: dict[str, Path]


def _merge(choice: Choice, site: Site, folder: Path, values: Mapping[str, Any]) -> _Plan:
    from ....runs import jobs

    if choice.kind != "adapter":
        raise UsageError(
            f"{choice.label} はアダプターではないので、統合は要りません。そのまま使えます。",
            f"{choice.label} is no adapter: there is nothing to merge, and it can be used as it is.",
        )
    out = _free(site, f"{slug(choice)}-merged")
    step = jobs.Step(("merge", choice.name, "--out", str(out), "--json", str(folder / _MERGED)))
    return _Plan([step], {"merged": out})


def _whole(choice: Choice, site: Site, folder: Path, values: Mapping[str, Any]) -> tuple[str, _Plan]:
    """(a whole model, what makes it): an adapter is merged first."""
    if choice.kind != "adapter":
        return choice.name, _Plan([], {})
    plan = _merge(choice, site, folder, values)
    return str(plan.made["merged"]), plan


def _quantize(choice: Choice, site: Site, folder: Path, values: Mapping[str, Any]) -> _Plan:
    from ....runs import jobs

    bits = values.get("bits", _BITS[0])
    if bits not in _BITS:
        raise UsageError("bits は 4 か 8 です。", "bits is 4 or 8.")
    name, before = _whole(choice, site, folder, values)
    out = _free(site, f"{slug(choice)}-{bits}bit")
    quantize = jobs.Step(("quantize", name, "--bits", str(bits), "--out", str(out)))
    bench = jobs.Step(("bench", name, str(out), "--runs", _PASSES, "--out", str(folder / _BENCH)))
    return _Plan([*before.steps, quantize, bench], {**before.made, "quantized": out})


def _gguf(choice: Choice, site: Site, folder: Path, values: Mapping[str, Any]) -> _Plan:
    from ....runs import jobs

    kind = values.get("type", _TYPES[0])
    if kind not in _TYPES:
        raise UsageError(f"type は {'・'.join(_TYPES)} です。", f"type is one of {', '.join(_TYPES)}.")
    out = _free(site, f"{slug(choice)}-{kind}.gguf")
    return _Plan([jobs.Step(("export", "gguf", choice.name, "--out", str(out), "--type", str(kind)))], {"gguf": out})


def _bundle(choice: Choice, site: Site, folder: Path, values: Mapping[str, Any]) -> _Plan:
    from ....runs import jobs

    name, before = _whole(choice, site, folder, values)
    out = _free(site, f"{slug(choice)}-bundle")
    return _Plan([*before.steps, jobs.Step(("bundle", name, "--out", str(out)))], {**before.made, "bundle": out})


_PLANS: dict[str, Callable[[Choice, Site, Path, Mapping[str, Any]], _Plan]] = {
    "merge": _merge,
    "quantize": _quantize,
    "gguf": _gguf,
    "bundle": _bundle,
}


def _free(site: Site, name: str) -> Path:
    """A name in the models' folder that nothing has, and that no export which has not ended will write."""
    claimed = _claimed(site)
    stem, dot, kind = name.partition(".gguf")
    for number in range(1, _TRIES):
        path = site.models / (f"{stem}{dot}{kind}" if number == 1 else f"{stem}-{number}{dot}{kind}")
        if not os.path.lexists(path) and str(path) not in claimed:
            return path
    raise UsageError(f"{name} という名前が残っていません。", f"no name like {name} is left.")


def _claimed(site: Site) -> set[str]:
    """What exports will write that wait, are at work, or can go on."""
    from ....runs import jobs

    open_ones = [job for job in jobs.listed(site.data, KIND, _TRIES) if job.state.status != "completed"]
    return {str(path) for job in open_ones for path in dict(job.about["made"]).values()}


async def _choices(request: Request) -> JSONResponse:
    site = site_of(request)
    found = await blocking(choices, site)
    return answer({"choices": [one.plain() for one in found], "folder": str(site.models)})


async def _start(request: Request) -> JSONResponse:
    site, values = site_of(request), await body(request)
    async with site.locks["export"]:  # the next one sees which names this one takes
        job = await blocking(_begin, site, values, language_of(request))
    return answer({"id": job.id})


def _begin(site: Site, values: Mapping[str, Any], language: str) -> Job:
    """Starts an export.

    Raises:
        ToolkitError: there is no such kind or model, or the model is none that can be written so.
    """
    from ....runs import jobs

    plan = _PLANS.get(str(values.get("kind")))
    if plan is None:
        raise UsageError("書き出しの種類を選んでください。", "choose what to write.")
    choice = chosen(site, values)
    try:
        site.models.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"{site.models} を作れません（{error}）。", f"{site.models} cannot be made ({error})."
        ) from error
    folder = jobs.new_folder(site.data, KIND)
    found = plan(choice, site, folder, values)
    about = {
        "kind": values["kind"],
        "of": {"by": choice.by, "id": choice.id, "label": choice.label},
        "made": {what: str(path) for what, path in found.made.items()},
    }
    return jobs.start(folder, found.steps, about, language)


async def _list(request: Request) -> JSONResponse:
    site = site_of(request)
    found = await blocking(job_routes.newest, site, KIND, _told)
    return answer(found | {"apis": await blocking(serving.running, site)})


def _told(job: Job) -> dict[str, Any]:
    from ....runs import jobs

    made = []
    for what, path in dict(job.about["made"]).items():
        if os.path.lexists(path):
            made.append({"what": what, "path": path, "size": _size(Path(path))})
    ended = job.state.status in ("failed", "stopped")
    return {
        "id": job.id,
        "status": job.state.status,
        "reason": job.state.reason,
        "made_at": job.made,
        "about": {key: job.about[key] for key in ("kind", "of")},
        "commands": job.commands,
        "done": job.done,
        "made": made,
        "merged": _merged(job.folder),
        "verdict": _verdict(job.folder),
        "log": jobs.last_said(job.folder)[-20:] if ended else [],
    }


def _size(path: Path) -> int:
    files = [path] if is_plain(path) else path.rglob("*")
    return sum(file.stat().st_size for file in files if is_plain(file))


def _merged(folder: Path) -> dict[str, Any] | None:
    """What `aift merge` has measured between the merged model and the trained one."""
    return _json(folder / _MERGED, ("kl", "top1", "limits"))


def _verdict(folder: Path) -> dict[str, Any] | None:
    """What `aift bench` says of the quantized model."""
    values = _json(folder / _BENCH / "benchmark.json", ("verdict", "disk_ratio", "memory_ratio", "perplexity_ratio"))
    return None if values is None else {**values, **values["verdict"]}


def _json(path: Path, keys: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        values = json.loads(read_bounded(path, _LARGEST))
        return {key: values[key] for key in keys}
    except (OSError, ValueError, KeyError, TypeError):
        return None


ROUTES = [
    Route("/api/export/choices", _choices),
    Route("/api/export", _start, methods=["POST"]),
    Route("/api/export", _list),
    *serving.ROUTES,
    *job_routes.routes(KIND, _told),
]
