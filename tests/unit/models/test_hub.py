"""A hub that refuses, stays silent, is gated or does not know the name: bounded in time, with the way out. All on
127.0.0.1.
"""

from __future__ import annotations

import http.server
import socket
import threading
import time
from pathlib import Path

import pytest
from tests.support.patience import patience

from ai_finetuning import JapaneseModel
from ai_finetuning.errors import HubError, InputNotFoundError, ModelError
from ai_finetuning.models import hub


class Hub(http.server.ThreadingHTTPServer):
    status, code = 200, ""
    authorization: str | None = None


class Handler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.server.authorization = self.headers.get("Authorization")
        self.send_response(self.server.status)
        if self.server.code:
            self.send_header("X-Error-Code", self.server.code)
        if self.server.status == 307:
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch):
    server = Hub(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "GatedRepo", ["gated", "accept its terms", "hf auth login"]),
        (401, "RepoNotFound", ["does not exist", "llm-jp/llm-jp-3-1.8b-instruct3"]),
        (404, "", ["does not exist"]),
        (401, "", ["authentication", "HF_TOKEN"]),
        (503, "", ["error 503", "mirror"]),
    ],
)
def test_every_refusal_says_the_way_out(fake_hub: Hub, status: int, code: str, words: list[str]):
    fake_hub.status, fake_hub.code = status, code
    with pytest.raises(HubError) as refusal:
        JapaneseModel("llm-jp/llm-jp-3-1.8b-instruct4").load_model()
    assert all(word in refusal.value.en for word in words)
    assert refusal.value.exit_code == 69


def test_a_hub_that_has_the_model_is_let_through(fake_hub: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fake_hub.status = 307
    assert hub.locate("someone/model") == hub.Located("someone/model", "someone/model", local_only=False)
    assert fake_hub.authorization is None  # a model that is there for all is asked for without the token


def test_a_refusing_hub_fails_within_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.perf_counter()
    with pytest.raises(HubError, match="does not answer"):
        JapaneseModel("someone/model").load_model()
    assert time.perf_counter() - began < patience(2 * hub.LIMIT_SECONDS)


def test_a_silent_hub_is_bounded(monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.perf_counter()
        with pytest.raises(HubError, match="does not answer"):
            hub.locate("someone/model", limit_seconds=0.5)
        assert time.perf_counter() - began < patience(5)


def test_offline_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="offline mode"):
        hub.locate("someone/model")


def test_a_mistyped_path_suggests_what_is_there(tiny_model_dir: Path):
    with pytest.raises(InputNotFoundError, match=str(tiny_model_dir)):
        JapaneseModel(str(tiny_model_dir) + "a").load_model()


def test_a_folder_without_a_model_and_an_adapter_are_refused(tmp_path: Path):
    with pytest.raises(ModelError, match=r"config\.json"):
        hub.locate(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}', encoding="utf-8")
    with pytest.raises(ModelError, match="org/base"):
        hub.locate(str(tmp_path))
