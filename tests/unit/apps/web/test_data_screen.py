"""データ without a browser: a reading that fails keeps what is nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from ai_finetuning.apps.web import api, children, collected, uploads
from ai_finetuning.apps.web.screens.data import ROUTES
from ai_finetuning.apps.web.site import Site
from ai_finetuning.errors import DataError, StorageError, ToolkitError, UsageError


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / "data").mkdir()
    return Site(tmp_path / "outputs", (tmp_path,), tmp_path / "models", tmp_path / "data")


def _kept(site: Site) -> str:
    row = collected.row_of("rating", [{"role": "user", "content": "首都は？"}], {"answer": "東京です。", "good": True})
    return collected.add(site, "rating", row, "ja").id


def _client(site: Site) -> TestClient:
    app = Starlette(routes=ROUTES, exception_handlers={ToolkitError: api.refuse})
    app.state.site = site
    return TestClient(app)


def _sent(client: TestClient, content: bytes) -> str:
    return str(client.post("/api/data/upload", content=content, headers={"x-aift-name": "faq.csv"}).json()["id"])


@pytest.mark.parametrize("error", [StorageError, UsageError, ToolkitError, DataError])
def test_a_failed_reading_keeps_answers_that_are_nowhere_else(
    site: Site, monkeypatch: pytest.MonkeyPatch, error: type[ToolkitError]
) -> None:
    # A disk that is full, a reading without end and one that is killed for its memory cannot be had in a test.
    async def failing(*_: object, **__: object) -> None:
        raise error("読めません。", "it cannot be read.")

    id, client = _kept(site), _client(site)
    other = _sent(client, "質問,回答\n首都は？,東京です。\n".encode())
    monkeypatch.setattr(children, "run", failing)
    for one in (id, other):
        assert client.post(f"/api/data/{one}/read", json={}).status_code >= 400
    left = {upload.id for upload in uploads.list_uploads(site)}
    assert id in left
    assert (other in left) == (error is not DataError)


def test_tokens_are_of_the_rows_as_they_are_now(site: Site) -> None:
    """An answer that is corrected once more takes the former one's place, and the file stays as long."""
    asked, client = [{"role": "user", "content": "首都は？"}], _client(site)
    shown = []
    for better in ("東京です。", "京都です。"):
        row = collected.row_of("pair", asked, {"answer": "大阪です。", "edited": better})
        id = collected.add(site, "pair", row, "ja").id
        assert client.post(f"/api/data/{id}/read", json={}).status_code == 200
        told = client.post(f"/api/data/{id}/tokens", json={"row": 1}).json()
        shown.append("".join(token[1] for part in told["rows"][0]["parts"] for token in part["tokens"]))
    assert "東京" in shown[0]
    assert "京都" in shown[1]
