"""What every screen of jobs has in common: how a job is found, ended, and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from .api import answer, blocking
from .site import site_of

if TYPE_CHECKING:
    from ...runs.jobs import Job


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
