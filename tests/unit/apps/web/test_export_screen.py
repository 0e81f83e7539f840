"""書き出し without a browser: no two exports write to one place."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ai_finetuning.apps.web import api
from ai_finetuning.apps.web.screens import export
from ai_finetuning.apps.web.site import Site
from ai_finetuning.errors import ToolkitError
from ai_finetuning.runs import jobs
from ai_finetuning.runs.devices import Place, visible_devices


def test_exports_that_wait_have_a_place_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "state"))
    site = Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")
    app = Starlette(routes=export.ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site = site
    training = Place(visible_devices(), tmp_path / "training")
    training.take()
    try:
        with TestClient(app) as client, ThreadPoolExecutor(2) as threads:
            asked = {"kind": "bundle", "model": "embedded-kotoha-tiny"}
            started = list(threads.map(lambda _: client.post("/api/export", json=asked), range(2)))
            assert [one.status_code for one in started] == [200, 200]
        found = jobs.listed(site.data, export.KIND)
        made = sorted(Path(job.about["made"]["bundle"]).name for job in found)
        assert made == ["kotoha-tiny-bundle", "kotoha-tiny-bundle-2"]
        for job in found:
            jobs.end(job)
            assert not (site.models / made[0]).exists()
    finally:
        training.leave()
