"""モデル: what can be trained on this PC."""

from __future__ import annotations

from starlette.routing import Route

from ....errors import InputNotFoundError
from ..pages import shell
from ..site import Site

ROUTES = [Route("/models", shell("models"))]


def find(site: Site, id: str) -> str:
    """What `model.name` takes, of an id."""
    raise InputNotFoundError("このモデルはありません。", "there is no such model.")
