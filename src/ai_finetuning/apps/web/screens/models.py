"""モデル: what can be trained on this PC."""

from __future__ import annotations

import hashlib
import re
import time
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....embedded import MODEL, PREFIX
from ....errors import InputNotFoundError, UsageError
from .. import children
from ..api import answer, blocking, body, text, valid_id
from ..site import Site, site_of

_SHIPPED = "embedded-"
# Seconds for which the list is taken for true: it holds what is free of this PC's memory.
_LISTED = 10.0
_SIMULATING = 180.0
_METHODS = ("lora", "qlora", "full")


def id_of(name: str) -> str:
    """A model's name as any address holds it.

    Args:
        name: a hub id, `embedded:NAME`, or a folder as `models.local` names it.
    """
    if name.startswith(PREFIX):
        return _SHIPPED + name.removeprefix(PREFIX)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:52].rstrip("-")
    return f"{slug or 'model'}-{hashlib.sha256(name.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"


DEFAULT = id_of(MODEL)


def find(site: Site, id: str) -> str:
    """What `model.name` takes, of an id: of the catalog, of the models' folder, of the hub's cache, or of what ships.

    Raises:
        UsageError: it is no id. InputNotFoundError: it is of no model, or of a link that leads out of the models' folder.
    """
    from ....models import catalog
    from ....models.local import local_models

    valid_id(id)
    name = next((name for name in catalog.rows() if id_of(name) == id), None)
    if name is not None:
        return name
    for model in local_models(site.models):
        if id_of(model.name) == id:
            if not model.name.startswith("./"):
                return model.name
            folder = (site.models / model.name).absolute()
            if not folder.resolve().is_relative_to(site.models.resolve()):
                raise InputNotFoundError(
                    f"{folder} は {site.models} の外へのリンクです。モデルをこのフォルダーへ移すか、--models で元のフォルダーを指定してください。",
                    f"{folder} is a link that leads out of {site.models}; move the model there, or name its folder with --models.",
                )
            return str(folder)
    raise InputNotFoundError(
        "このモデルはありません（フォルダーの名前が変わったかもしれません）。",
        "there is no such model; its folder may have another name now.",
    )


def listed_name(site: Site, name: str) -> str:
    """A model as `models.local` names it, of what `model.name` takes: the other way round as find()."""
    root, path = site.models.absolute(), Path(name)
    return f"./{path.relative_to(root).as_posix()}" if root in path.parents else name


async def _list(request: Request) -> Response:
    """Every model with its id, and what is free here, as `aift models --method METHOD --json` says: `?method=lora`."""
    method = request.query_params.get("method", _METHODS[0])
    if method not in _METHODS:
        raise UsageError(f"method は {', '.join(_METHODS)} です。", f"method is one of {', '.join(_METHODS)}.")
    site = site_of(request)
    made, found = site.listed_models.get(method, (0.0, None))
    if found is None or not 0 <= time.monotonic() - made < _LISTED:
        found = await _asked(request, ["--method", method])
        site.listed_models[method] = (time.monotonic(), found)
    return answer(found | {"folder": str(site.models)})


async def _fit(request: Request) -> Response:
    """What training one model takes here; where its configuration is on this PC, told by a simulation of a step."""
    id = text(await body(request), "model")
    name = await blocking(find, site_of(request), id)
    found = await _asked(request, [listed_name(site_of(request), name), "--fits"])
    return answer({"room": found["room"], "model": next(item for item in found["models"] if item["model"] == name)})


async def _asked(request: Request, arguments: list[str]) -> dict[str, Any]:
    folder = site_of(request).models
    command = ["models", *arguments, "--in", str(folder), "--json", "-"]
    found: dict[str, Any] = await children.run(request, command, seconds=_SIMULATING)
    for model in found["models"]:
        model["key"] = id_of(model["id"])
    return found


ROUTES = [
    Route("/api/models", _list),
    Route("/api/models/fit", _fit, methods=["POST"]),
]
