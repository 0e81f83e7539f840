"""書き出し, API を開始, without a browser: one of each model, what is told of it, and why it ended."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient
from tests.support.patience import until
from tests.support.servers import needs_server

from ai_finetuning.apps.web import api, serving
from ai_finetuning.apps.web.job_routes import refuse_used
from ai_finetuning.apps.web.screens import export
from ai_finetuning.apps.web.site import Site
from ai_finetuning.embedded import model_folder
from ai_finetuning.errors import ConfigError, RunLockedError, ToolkitError
from ai_finetuning.export import serve
from ai_finetuning.runs import jobs
from ai_finetuning.runs.devices import Place, visible_devices
from ai_finetuning.system.children import OWNER, isolated_environment

KOTOHA = {"model": "embedded-kotoha-tiny"}

pytestmark = needs_server


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "state"))
    return Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    app = Starlette(routes=export.ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site = site
    with TestClient(app) as opened:
        yield opened
    for job in jobs.listed(site.data, serving.KIND):
        if job.state.at_work:
            jobs.end(job)


def _apis(client: TestClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.get("/api/export").json()["apis"]
    return found


def test_each_model_has_one_that_waits_for_its_device_and_can_be_stopped(
    client: TestClient, site: Site, tmp_path: Path
) -> None:
    training = Place(visible_devices(), tmp_path / "training")
    training.take()
    try:
        id = client.post("/api/export/serve", json=KOTOHA).json()["id"]
        again = client.post("/api/export/serve", json=KOTOHA)
        assert again.status_code == 409
        assert "kotoha-tiny" in again.json()["error"]["ja"]
        (told,) = _apis(client)
        assert (told["id"], told["status"], told["ready"]) == (id, "waiting", None)
        assert told["command"] == ["aift", "serve", "embedded:kotoha-tiny", "--alias", "kotoha-tiny"]
        # The key lies in a file that others cannot read, and neither in a command line nor in what is told before it is used.
        job = jobs.find(site.data, id, serving.KIND)
        key = (job.folder / "key").read_text(encoding="ascii")
        assert len(key) >= 32
        assert stat.S_IMODE((job.folder / "key").stat().st_mode) == 0o600
        assert key not in json.dumps([job.commands, told])
        with pytest.raises(RunLockedError, match="an API"):  # what it serves is neither renamed nor moved to the trash
            refuse_used(site, "faq", lambda about: bool(about["of"]["id"] == KOTOHA["model"]))
        argv = job.steps[0].argv
        assert argv[argv.index("--port") + 1] == "0"
        assert client.post(f"/api/export/serve/{id}/stop").status_code == 200
        assert _apis(client) == []
        assert client.post("/api/export/serve", json=KOTOHA).status_code == 200
        assert [one["id"] for one in _apis(client)] != [id]
    finally:
        training.leave()
    for values in ({}, {"model": "/etc"}, {"run": "../x"}, KOTOHA | {"run": "faq"}):
        assert 400 <= client.post("/api/export/serve", json=values).status_code < 500
    assert client.post("/api/export/serve/export-20260101-000000-abcdef/stop").status_code == 404


def test_one_that_ends_by_itself_says_why(client: TestClient, site: Site) -> None:
    damaged = site.models / "damaged"
    shutil.copytree(model_folder("embedded:kotoha-tiny"), damaged)
    values = json.loads((damaged / "config.json").read_text(encoding="utf-8"))
    (damaged / "config.json").write_text(
        json.dumps(values | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}),
        encoding="utf-8",
    )
    model = next(one["id"] for one in client.get("/api/export/choices").json()["choices"] if one["label"] == "damaged")
    assert client.post("/api/export/serve", json={"model": model}).status_code == 200
    until(lambda: _apis(client)[0]["status"] not in ("waiting", "running"), 60, "the API ends")
    (told,) = _apis(client)
    assert told["status"] == "failed"
    assert "quantized" in told["reason"]
    assert any("quantized" in line for line in told["log"])
    assert client.post("/api/export/serve", json={"model": model}).status_code == 200  # once more


def test_a_key_is_one_line_of_a_file(tmp_path: Path) -> None:
    file, told = tmp_path / "key", tmp_path / "ready.json"
    file.write_text("a-key\n", encoding="ascii")
    clients = serve.Clients("faq", key_file=file, told=told)
    environment = serve.server_environment(clients, "embedded:kotoha-tiny")
    assert environment["AIFT_SERVE_KEY"] == "a-key"
    assert environment["AIFT_SERVE_TOLD"] == str(told)
    assert json.loads(environment["AIFT_SERVE_NAMES"]) == ["faq", "kotoha-tiny"]
    for content in ("", "two words", "鍵", "a\nb", "x" * 600):
        file.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="--key-file"):
            serve.server_environment(clients, "embedded:kotoha-tiny")
    with pytest.raises(ConfigError, match="cannot be read"):
        serve.server_environment(serve.Clients(key_file=tmp_path / "none"), "embedded:kotoha-tiny")


def test_the_server_has_the_job_of_the_command_that_it_takes_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other child has it."""
    monkeypatch.setenv(OWNER, "7")
    assert serve.server_environment(serve.Clients(), "embedded:kotoha-tiny")[OWNER] == "7"
    assert OWNER not in isolated_environment()
