"""実行中 without a browser: runs are never listed on the event loop, where that holds up every other request."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ai_finetuning.apps.web import api
from ai_finetuning.apps.web.screens import runs
from ai_finetuning.apps.web.site import Site
from ai_finetuning.errors import ToolkitError


def test_no_folder_is_looked_for_on_the_event_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "outputs" / "faq"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"status": "completed"}), encoding="utf-8")
    (folder / "console.log").write_text("\x1b[31mred\x1b[0m\n", encoding="utf-8")
    loop: list[int] = []
    looked: list[int] = []
    find = Site.folder

    def folder_of(site: Site, id: str) -> Path:
        looked.append(threading.get_ident())
        return find(site, id)

    monkeypatch.setattr(Site, "folder", folder_of)

    async def here(request: object) -> api.Response:
        loop.append(threading.get_ident())
        return api.answer({})

    app = Starlette(routes=runs.ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.add_route("/here", here)
    app.state.site = Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")
    with TestClient(app) as client:
        client.get("/here")
        assert client.get("/api/runs/faq/log").json()["text"] == "red\n"
        assert client.get("/api/runs/faq/samples").json() == {"rows": []}
        assert client.post("/api/runs/faq/stop", json={"how": "save"}).status_code >= 400  # it has ended
        assert client.post("/api/runs/faq/resume", json={}).status_code >= 400  # it has no settings
    assert len(looked) == 4
    assert loop[0] not in looked
