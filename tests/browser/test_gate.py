"""The gate: without the token there is nothing but empty pages, and nothing is answered or started for others."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.process import identity
from tests.browser.conftest import PATHS, Web


def ask(
    web: Web, method: str, path: str, *, host: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request as any program can send it."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in {"host": f"127.0.0.1:{web.port}" if host is None else host, **headers}.items():
        if value != "":
            connection.putheader(name.replace("_", "-"), value)
    content = b'{"how": "save"}' if method == "POST" else b""
    connection.putheader("content-length", str(len(content)))
    connection.endheaders(content)
    response = connection.getresponse()
    found = response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return found


@pytest.fixture
def run_at_work(tmp_path: Path) -> Path:
    """A run that this very process is: what is asked of it lands in its folder."""
    folder = tmp_path / "outputs" / "busy"
    folder.mkdir(parents=True)
    change_run(folder, status="running", **identity())
    return folder


def test_every_screen_opens(web: Web, page: Any):
    from playwright.sync_api import expect

    for path in PATHS:
        web.open(page, path)
        expect(page.locator("h1")).not_to_be_empty()
        expect(page.locator("#machine")).to_contain_text("空き")
        expect(page.locator("#command")).to_contain_text("aift")
        assert "token" not in page.url
    assert web.process is not None
    libraries = [item.path for item in psutil.Process(web.process.pid).memory_maps()]
    assert not [path for path in libraries if "/torch/" in path]


@pytest.mark.parametrize("locale", ["ja-JP", "en-US"])
def test_without_the_token_a_page_has_labels_only(web: Web, new_context: Any, locale: str):
    from playwright.sync_api import expect

    page = new_context(locale=locale).new_page()
    loads: list[str] = []
    page.on("framenavigated", lambda frame: loads.append(frame.url))
    page.goto(web.url)
    told = {"ja-JP": "このページを開く許可がありません", "en-US": "This page may not be opened"}[locale]
    expect(page.locator("#notice")).to_contain_text(told)
    page.wait_for_timeout(1000)
    assert len(loads) == 1  # no page that loads itself again and again


def test_a_new_address_put_into_the_open_tab_is_taken(web: Web, page: Any):
    """A server that was started again prints another token; to the browser its address is the page that is open."""
    from playwright.sync_api import expect

    page.goto(f"{web.url}/#token=old")
    expect(page.locator("#notice")).to_contain_text("このページを開く許可がありません")
    web.open(page, "/")
    expect(page.locator("#machine")).to_contain_text("空き")
    expect(page.locator("#notice")).to_be_empty()
    assert "token" not in page.url


def test_what_is_not_there_shows_no_cards_that_wait(web: Web, page: Any):
    from playwright.sync_api import expect

    for path in ("/runs/none", "/runs/none/result"):
        web.open(page, path)
        expect(page.locator("#notice")).to_contain_text("この学習はありません")
        expect(page.locator("main .card").filter(visible=True)).to_have_count(0)
    web.open(page, "/train?copy=none")
    expect(page.locator("#notice")).to_contain_text("この学習はありません")
    expect(page.locator("main")).not_to_contain_text("読み込んでいます")


def test_an_address_of_a_run_that_is_gone_takes_no_other_model(web: Web, page: Any):
    from playwright.sync_api import expect

    for path in ("/answers?run=none", "/export?run=none", "/chat?run=none"):
        web.open(page, path)
        expect(page.locator("#notice")).to_contain_text("ここにありません")
        expect(page.locator("#model")).to_have_value("")
        expect(page.locator("#model")).to_contain_text("kotoha-tiny")
    web.open(page, "/export")
    expect(page.locator("#model")).to_have_value("model=embedded-kotoha-tiny")


def test_what_others_send_is_refused_and_starts_nothing(web: Web, run_at_work: Path):
    port = web.port
    stop, token = "/api/runs/busy/stop", {"x_aift_token": web.token}
    refused = [
        (400, {"host": "evil.example", **token}),
        (400, {"host": f"evil.example:{port}", **token}),
        (400, {"host": f"127.0.0.1:{port + 1}", **token}),
        (400, {"host": "127.0.0.1", **token}),
        (403, {"origin": "http://evil.example", **token}),
        (403, {"origin": f"http://127.0.0.1:{port + 1}", **token}),
        (403, {"origin": f"https://127.0.0.1:{port}", **token}),
        (403, {"origin": "null", **token}),
        (403, {"sec_fetch_site": "cross-site", **token}),
        (403, {"sec_fetch_site": "same-site", **token}),
        (401, {}),
        (401, {"x_aift_token": "wrong"}),
        (401, {"x_aift_token": web.token[:-1]}),
        (401, {"cookie": f"x-aift-token={web.token}"}),
    ]
    for status, headers in refused:
        assert ask(web, "POST", stop, **headers)[0] == status, headers
        assert ask(web, "GET", "/api/home", **headers)[0] == status, headers
    assert ask(web, "POST", "/", **{})[0] == 401
    assert ask(web, "OPTIONS", stop, origin="http://evil.example")[0] == 403
    assert not (run_at_work / "stop.request").exists()
    # The same with all that is asked for is answered: it is the gate that refused.
    status, _, said = ask(web, "POST", stop, origin=web.url, sec_fetch_site="same-origin", **token)
    assert (status, "止まります" in json.loads(said)["ja"]) == (200, True)
    assert (run_at_work / "stop.request").exists()


def test_a_page_of_another_port_reads_and_starts_nothing(web: Web, browser: Any, run_at_work: Path):
    """In a browser, which sends such requests without asking: a page of another program of this PC."""
    text = f"""<title>waiting</title><script>
      const url = "{web.url}/api/runs/busy/stop", body = '{{"how": "now"}}';
      Promise.allSettled([
        fetch(url, {{method: "POST", mode: "no-cors", body, headers: {{"content-type": "text/plain"}}}}),
        fetch(url, {{method: "POST", body, headers: {{"x-aift-token": "{web.token}"}}}}),
        fetch("{web.url}/api/home", {{headers: {{"x-aift-token": "{web.token}"}}}}).then((answer) => answer.text()),
      ]).then((all) => (document.title = all.map((one) => one.status).join()));
    </script>"""

    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *args: Any) -> None:
            pass

    other = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    from playwright.sync_api import expect

    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{other.server_port}/")
        expect(page).to_have_title("rejected,rejected,rejected")
    finally:
        context.close()
        other.shutdown()
        other.server_close()
    assert not (run_at_work / "stop.request").exists()


def test_every_answer_carries_the_policy(web: Web):
    for path, status in (
        ("/", 200),
        ("/static/app.css", 200),
        ("/api/home", 401),
        ("/nowhere", 404),
        ("/../etc/passwd", 404),
    ):
        found, headers, _ = ask(web, "GET", path)
        assert found == status, path
        assert "require-trusted-types-for 'script'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert not {"server", "access-control-allow-origin", "set-cookie"} & set(headers)


def test_an_address_that_is_none_is_a_page_for_a_browser(web: Web):
    status, headers, page = ask(web, "GET", "/runs", accept="text/html,*/*;q=0.8")
    assert (status, headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "このページはありません" in page.decode()
    assert 'href="/"' in page.decode()
    assert b'"error"' in ask(web, "GET", "/runs", accept="application/json")[2]


def test_ids_name_nothing_outside_of_the_roots(web: Web, tmp_path: Path):
    token = {"x_aift_token": web.token}
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "run.json").write_text("{}")
    for id in ("..", "%2e%2e", "..%2fsecret", "secret%00", "a" * 65, "%E3%81%82"):
        for path in (f"/api/runs/{id}", f"/api/runs/{id}/metrics", f"/api/runs/{id}/log"):
            assert ask(web, "GET", path, **token)[0] in (400, 404), path
    for path in ("/static/../main.py", "/static/%2e%2e/main.py", "/static/vendor", "/download/none"):
        assert ask(web, "GET", path)[0] == 404, path


def test_a_body_that_is_too_large_is_not_read(web: Web, run_at_work: Path):
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=120)
    body = b'{"how": "' + b"x" * (2 << 20) + b'"}'
    connection.request("POST", "/api/runs/busy/stop", body, {"x-aift-token": web.token})
    response = connection.getresponse()
    assert response.status == 400
    assert "大きすぎます" in json.loads(response.read())["error"]["ja"]
    connection.close()
    for body in (b"[]", b"{", b'{"how": 1}', b'{"how": "kill"}', b"[" * 200_000):
        connection.request("POST", "/api/runs/busy/stop", body, {"x-aift-token": web.token})
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["kind"]) == (400, "UsageError"), body[:20]
    connection.close()


def test_a_taken_port_and_a_start_without_torch(start_web: Any, web: Web):
    """The next free port is taken, and starting needs little: no library that takes seconds."""
    second = start_web("--lang", "en")
    assert second.port != web.port
    assert second.process is not None
    spent = psutil.Process(second.process.pid).cpu_times()
    assert spent.user + spent.system < 1.0
    libraries = [item.path for item in psutil.Process(second.process.pid).memory_maps()]
    assert not [path for path in libraries if "/torch/" in path or "/numpy/" in path]


def test_without_the_extra_the_command_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    import importlib.util

    from ai_finetuning.apps.cli.main import run

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "uvicorn" else found(name, *more)
    )
    assert run(["web", "--no-open"]) == 78
    assert "uvicorn: `pip install 'ai-finetuning-toolkit[web]'`" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(["web", "--lang", "fr"]) == 64
    assert run(["web", "--listen", "example.com"]) == 78


def test_other_addresses_are_asked_by_their_numbers_only():
    from ai_finetuning.apps.web.main import names_of

    assert names_of("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert names_of("192.168.7.9") == ["192.168.7.9"]
    assert names_of("::1") == ["[::1]"]
    everything = names_of(".".join("0000"))
    assert "localhost" in everything
    assert all(name == "localhost" or name.replace(".", "").isdigit() for name in everything)


def test_a_download_has_an_address_that_works_once(web: Web):
    """Asked for with the token; then without it, whole, once, and as a file, whatever it holds."""
    folder = web.folder / "outputs" / "faq"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"status": "completed"}')
    (folder / "report.html").write_text("<script>alert(1)</script>")
    assert ask(web, "POST", "/api/results/faq/report")[0] == 401
    address = json.loads(ask(web, "POST", "/api/results/faq/report", x_aift_token=web.token)[2])["address"]
    status, headers, content = ask(web, "GET", address, range="bytes=0-2")
    assert (status, content) == (200, b"<script>alert(1)</script>")
    assert headers["content-disposition"].startswith("attachment;")
    assert headers["content-type"] == "application/octet-stream"
    assert ask(web, "GET", address)[0] == 404
