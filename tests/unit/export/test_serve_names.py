"""Names and room behind the gate of `aift serve`, asked as an ASGI application is."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from tests.support.models import build_tokenizer

from ai_finetuning.errors import ConfigError
from ai_finetuning.export.serve_names import Named, room_of, short_name, validate_alias

FOLDER = '/home/人/.cache/a "b"/c13ac'
CHAT = "/v1/chat/completions"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what reached it, as transformers' server does: the model by its folder."""
    values = json.loads((await receive())["body"])
    answer = json.dumps({"got": values, "model": f"{FOLDER}@main"}, ensure_ascii=False).encode()
    length = (b"content-length", str(len(answer)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": answer, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def stream(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(2):
        piece = json.dumps({"model": f"{FOLDER}@main"}, ensure_ascii=False).encode()
        await send({"type": "http.response.body", "body": b"data: " + piece + b"\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def ask(
    app: Any, values: Any, route: str = CHAT, positions: int | None = None
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[dict[str, Any]] = []
    waiting = [{"type": "http.request", "body": json.dumps(values).encode()}]

    async def receive() -> Any:
        return waiting.pop()

    async def send(message: Any) -> None:
        sent.append(message)

    room = room_of(build_tokenizer(), positions)
    named = Named(app, FOLDER, ("faq", "my-faq"), 4096, room, lambda: None)
    asyncio.run(named({"type": "http", "method": "POST", "path": route}, receive, send))
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), body


@pytest.mark.parametrize("name", ["faq", "my-faq", FOLDER, None])
def test_a23_every_name_reaches_the_model_and_the_short_one_comes_back(name: str | None):
    status, headers, body = ask(echo, {"messages": [], **({"model": name} if name else {})})
    values = json.loads(body)
    assert (status, values["model"]) == (200, "faq")
    assert values["got"]["model"] == "faq"  # the folder's name in an answer is renamed wherever it is a value
    assert int(headers[b"content-length"]) == len(body)


def test_a23_another_name_is_refused_without_the_folder():
    status, _, body = ask(echo, {"model": "other", "messages": []})
    assert status == 400
    assert "pinned to 'faq'" in json.loads(body)["error"]["message"]
    assert b"c13ac" not in body


def test_a23_streams_are_renamed_too():
    _, _, body = ask(stream, {"model": "faq", "messages": []})
    assert body == b'data: {"model": "faq"}\n\n' * 2


def test_what_is_no_json_object_goes_on_to_the_server():
    sent = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        sent.append((await receive())["body"])

    for values in ([1], "x"):
        with pytest.raises(IndexError):
            ask(server, values)
    assert sent == [b"[1]", b'"x"']


@pytest.mark.parametrize(
    ("route", "values", "name", "expected"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "首都は？"}], "max_tokens": 5}, "max_tokens", 5),
        (CHAT, {"messages": [{"role": "user", "content": "首都は？"}], "max_tokens": 5000}, "max_tokens", None),
        (CHAT, {"messages": [{"role": "user", "content": "首都は？"}]}, "max_tokens", None),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "首都は？"}]}]},
            "max_tokens",
            None,
        ),
        ("/v1/completions", {"prompt": "首都は？", "max_tokens": 5000}, "max_tokens", None),
        ("/v1/responses", {"input": "首都は？", "instructions": "短く。"}, "max_output_tokens", None),
    ],
)
def test_the_answer_ends_at_the_models_last_position(route: str, values: dict, name: str, expected: int | None):
    got = json.loads(ask(echo, values, route, positions=64)[2])["got"]
    if expected is not None:
        assert got[name] == expected
    else:
        room = room_of(build_tokenizer(), 64)(route, values)
        assert room is not None
        assert 0 < room < 64
        assert got[name] == room


def test_a_prompt_beyond_the_last_position_is_refused_with_the_number():
    values = {"messages": [{"role": "user", "content": "首都は？" * 50}]}
    status, _, body = ask(echo, values, positions=64)
    assert status == 400
    assert "tokens too long for this model" in json.loads(body)["error"]["message"]


def test_without_positions_and_for_odd_requests_nothing_is_changed():
    for values, positions in (({"messages": "x"}, 64), ({"messages": [{"content": 3}]}, 64), ({"messages": []}, None)):
        got = json.loads(ask(echo, values, positions=positions)[2])["got"]
        assert {key: value for key, value in got.items() if key != "model"} == values


def test_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "社内 faq").mkdir()
    assert short_name(str(tmp_path / "社内 faq")) == "社内-faq"
    monkeypatch.chdir(tmp_path)
    assert short_name(".") == tmp_path.name
    assert short_name("llm-jp/llm-jp-3-1.8b") == "llm-jp-3-1.8b"
    assert short_name("embedded:kotoha-tiny") == "kotoha-tiny"


@pytest.mark.parametrize("alias", ["", "a b", "a\nb", "--x", "a" * 101, '"'])
def test_an_alias_that_clients_would_trip_over_is_refused(alias: str):
    with pytest.raises(ConfigError, match="--alias is"):
        validate_alias(alias)


def test_an_alias():
    for alias in ("faq", "社内faq", "llm-jp/3-1.8b:latest", "gpt-4o"):
        assert validate_alias(alias) == alias
