"""What every screen of jobs has in common: how a job is found, ended, and gone on with; and what jobs read stays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from ...errors import RunLockedError
from .api import answer, blocking
from .site import Site, site_of

if TYPE_CHECKING:
    from ...runs.jobs import Job

ANSWERS, EXPORT = "answers", "export"
# The newest jobs of a kind, which a screen shows.
_SHOWN = 50


def refuse_used(site: Site, shown: str, uses: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuses what would take something from under a job that is at work, or waits.

    Args:
        shown: what people call it.
        uses: whether a job reads it, by what its screen wrote down of it.

    Raises:
        RunLockedError: one does.
    """
    from ...runs import jobs

    kinds = (ANSWERS, EXPORT, jobs.API)
    if any(job.state.at_work and uses(job.about) for kind in kinds for job in jobs.listed(site.data, kind)):
        raise RunLockedError(
            f"{shown} は一括回答か、書き出しの画面の作業か API が使っています。終わってからにしてください。",
            f"{shown} is used by a batch of answers, an export or an API; do it when that has ended.",
        )


def newest(site: Site, kind: str, told: Callable[[Job], dict[str, Any]]) -> dict[str, Any]:
    """The newest jobs of a kind as the screen's JSON, how many older ones there are, and where.

    Args:
        told: a job as the screen's JSON.
    """
    from ...runs import jobs

    older = {"count": max(0, len(jobs.names_of(site.data, kind)) - _SHOWN), "folder": str(site.data / jobs.FOLDER)}
    return {"jobs": [told(job) for job in jobs.listed(site.data, kind, _SHOWN)], "older": older}


def job_of(request: Request, kind: str) -> Job:
    """The job that an address names.

    Raises:
        InputNotFoundError: there is none of this kind.
    """
    from ...runs import jobs

    return jobs.find(site_of(request).data, str(request.path_params["id"]), kind)


def stop_route(kind: str, told: Callable[[Job], dict[str, Any]], at: str) -> Route:
    """The route that ends a job.

    Args:
        kind: of the jobs.
        told: a job as the screen's JSON.
        at: the address below which it is.
    """

    async def stop(request: Request) -> JSONResponse:
        from ...runs import jobs

        return answer(told(await blocking(jobs.end, await blocking(job_of, request, kind))))

    return Route(f"{at}/{{id}}/stop", stop, methods=["POST"])


def routes(kind: str, told: Callable[[Job], dict[str, Any]]) -> list[Route]:
    """The routes that end a job and go on with it, below /api/KIND.

    Args:
        kind: of the jobs, which is also the screen's name.
        told: a job as the screen's JSON.
    """

    async def resume(request: Request) -> JSONResponse:
        from ...runs import jobs

        return answer(told(await blocking(jobs.again, await blocking(job_of, request, kind))))

    at = f"/api/{kind}"
    return [stop_route(kind, told, at), Route(f"{at}/{{id}}/resume", resume, methods=["POST"])]
