"""`aift serve` against web pages and other users of the machine: a real server, asked over its socket."""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ai_finetuning.export.gate import MAX_BODY, Gate, Rules
from tests.support.commands import start
from tests.support.patience import patience
from tests.support.ports import free_port
from tests.support.servers import needs_server, until_it_answers

KEY = "a-key-of-the-test"
CHAT = "/v1/chat/completions"


def body_of(model: str, **more: Any) -> bytes:
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "首都は？"}], "max_tokens": 4} | more
    ).encode()


async def asked(gate: Gate, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
    """(status, body) that a gate gives a request."""
    sent: list[dict[str, Any]] = []
    parts = [body[start : start + 2**18] for start in range(0, len(body), 2**18)] or [b""]
    waiting = [{"type": "http.request", "body": part, "more_body": part is not parts[-1]} for part in parts]

    async def receive() -> dict[str, Any]:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await gate({"type": "http", "method": method, "path": path, "headers": raw}, receive, send)
    return sent[0]["status"], sent[1].get("body", b"")


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """An application that says what reached it."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message.get("body", b"")})


HOST = {"Host": "127.0.0.1:8000"}
JSON = HOST | {"Content-Type": "application/json"}
BODY = body_of("m")
REQUESTS = [
    ("POST", CHAT, JSON, BODY, 200),
    ("GET", "/health", HOST, b"", 200),
    ("GET", "/v1/models", {"Host": "localhost"}, b"", 200),
    ("GET", "/v1/models", {"Host": "[::1]:8000"}, b"", 200),
    ("POST", CHAT, JSON | {"Origin": "http://localhost:3000"}, BODY, 200),
    ("POST", CHAT, JSON | {"Host": "evil.example"}, BODY, 400),
    ("POST", CHAT, JSON | {"Host": "evil.example@127.0.0.1.evil.example"}, BODY, 400),
    ("POST", CHAT, {"Content-Type": "application/json"}, BODY, 400),
    ("POST", CHAT, JSON | {"Origin": "https://evil.example"}, BODY, 403),
    ("POST", CHAT, JSON | {"Origin": "null"}, BODY, 403),
    ("POST", "/reset", HOST, b"", 404),
    ("POST", "/load_model", JSON, b'{"model": "/etc"}', 404),
    ("GET", "/docs", HOST, b"", 404),
    ("OPTIONS", CHAT, HOST, b"", 404),
    ("POST", CHAT, JSON | {"Content-Length": "300000000"}, b"", 413),
    ("POST", CHAT, JSON, b"x" * (MAX_BODY + 1), 413),
    ("POST", CHAT, JSON, body_of("m", max_tokens=10**9), 400),
    ("POST", CHAT, JSON, body_of("m", max_completion_tokens=65), 400),
    ("POST", CHAT, JSON, body_of("m", n=100), 400),
]


@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), REQUESTS)
def test_the_gate_lets_through_what_the_table_says(method: str, path: str, headers: dict, body: bytes, status: int):
    gate = Gate(behind, Rules("m", max_tokens=64))
    obtained, answer = asyncio.run(asked(gate, method, path, headers, body))
    assert obtained == status, answer
    if status == 200 and method == "POST":
        assert answer == body  # what was read to be looked at is there for the server


def test_a_key_is_asked_for_where_one_is_set():
    gate = Gate(behind, Rules("m", max_tokens=64, key=KEY))
    for given, status in ((None, 401), ("Bearer other", 401), (KEY, 401), (f"Bearer {KEY}", 200)):
        headers = JSON | ({"Authorization": given} if given else {})
        assert asyncio.run(asked(gate, "POST", CHAT, headers, BODY))[0] == status


def test_only_the_served_model_is_listed():
    _, answer = asyncio.run(asked(Gate(behind, Rules("m", max_tokens=64)), "GET", "/v1/models", HOST, b""))
    assert [item["id"] for item in json.loads(answer)["data"]] == ["m"]


@pytest.fixture
def server() -> Iterator[tuple[subprocess.Popen[str], int]]:
    port = free_port()
    process = start("serve", "embedded:kotoha-tiny", "--port", str(port), "--device", "cpu", AIFT_SERVE_KEY=KEY)
    try:
        until_it_answers(process, port, KEY)
        yield process, port
    finally:
        process.kill()
        process.communicate(timeout=patience(30))


@needs_server
def test_the_real_server_stands_behind_the_gate_and_ends_while_it_generates(server: tuple[subprocess.Popen[str], int]):
    process, port = server

    def ask(path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(60))
        given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"} | headers
        connection.request("POST" if body is not None else "GET", path, body, given)
        answer = connection.getresponse()
        return answer.status, answer.read()

    status, models = ask("/v1/models")
    assert status == 200
    (model,) = (item["id"] for item in json.loads(models)["data"])
    assert ask(CHAT, body_of(model))[0] == 200
    assert ask(CHAT, body_of(model), Host="evil.example")[0] == 400
    assert ask(CHAT, body_of(model), Authorization="Bearer other")[0] == 401
    assert ask("/load_model", b'{"model": "/etc"}')[0] == 404
    assert ask("/reset", b"")[0] == 404
    # A generation that goes on, streamed, does not keep the process.
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience(60))
    body = body_of(model, max_tokens=4096, stream=True, logit_bias={})
    connection.request("POST", CHAT, body, {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"})
    assert connection.getresponse().status == 200
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=patience(20))
    assert time.monotonic() - began < patience(5)
