"""`aift serve`: a real server process, asked by the real openai client."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.commands import call, start
from tests.support.patience import patience
from tests.support.ports import free_port
from tests.support.runs import train_lora
from tests.support.servers import needs_server, until_it_answers

from ai_finetuning.export import serve, serve_needs
from ai_finetuning.export.source import model_folder


@pytest.fixture(scope="module")
def adapter(kotoha: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "adapter"
    train_lora(Path(kotoha), folder, num_epochs=1)
    return folder


@pytest.fixture(scope="module")
def server(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, str]]:
    """(port, model) of a server for the adapter, in a process of its own with no hub cache."""
    port = free_port()
    cache = tmp_path_factory.mktemp("hub") / "none"
    command = ("serve", str(adapter), "--port", str(port), "--device", "cpu", "--alias", "faq-bot")
    process = start(*command, HF_HUB_CACHE=str(cache))
    try:
        until_it_answers(process, port)
        yield port, str(model_folder(str(adapter)))  # merged by the server's process; here only found
    finally:
        process.terminate()
        process.communicate(timeout=patience(30))


@needs_server
def test_the_openai_client_talks_to_the_tuned_model(server: tuple[int, str], adapter: Path):
    import openai

    from ai_finetuning.inference.session import open_model
    from ai_finetuning.models.generation import generate_text

    port, model = server
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    messages = [{"role": "user", "content": "3の次の数は何ですか？"}]
    options = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0.0}
    answer = client.chat.completions.create(**options)
    text = answer.choices[0].message.content
    opened = open_model(model)
    assert text == generate_text(opened.model, opened.tokenizer, [messages], max_new_tokens=8, do_sample=False)[0]
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(**options, stream=True)
        if chunk.choices
    ]
    assert "".join(pieces) == text
    assert len([piece for piece in pieces if piece]) > 1
    # A23: clients see and send a short name; without a hub cache, transformers by itself answers 500 here.
    assert [item.id for item in client.models.list().data] == ["faq-bot", "adapter"]
    assert answer.model == "faq-bot"
    for name in ("faq-bot", "adapter"):
        assert client.chat.completions.create(**{**options, "model": name}).choices[0].message.content == text
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{**options, "model": "/etc"})
    assert "pinned" in refused.value.response.text


@needs_server
def test_the_server_listens_on_this_machine_only(server: tuple[int, str]):
    port, _ = server
    with pytest.raises(OSError):
        socket.create_connection((_outside_address(), port), timeout=patience(2))


def _outside_address() -> str:
    """An address of this machine other than the loopback's 127.0.0.1."""
    return (
        "127.0.0.2"
        if os.name == "posix" and os.uname().sysname == "Linux"
        else socket.gethostbyname(socket.gethostname())
    )


def test_the_command_is_pinned_and_local(tmp_path: Path):
    command = serve.serve_command(tmp_path, port=8123, device="cpu", bits=4)
    assert command[2:5] == ["ai_finetuning.export.serve_process", "serve", str(tmp_path)]
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--quantization") + 1] == "bnb-4bit"
    assert not any("trust" in item or "cors" in item for item in command)


def test_missing_packages_are_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(serve_needs, "NEEDED", ("a_server_nobody_has",))
    assert call("serve", "embedded:kotoha-tiny") == 78
    logged = capsys.readouterr().err
    assert "a_server_nobody_has" in logged
    assert "ai-finetuning-toolkit[serve]" in logged


def test_bad_input_is_refused_before_a_server_starts(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(serve_needs, "NEEDED", ())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert call("serve", str(tiny_model_dir), "--port", str(taken.getsockname()[1])) == 64
    assert "choose another with --port" in capsys.readouterr().err
    assert call("serve", str(tiny_model_dir), "--port", "99999999") == 64
    assert call("serve", str(tiny_model_dir), "--bits", "5") == 64
    assert call("serve", str(tmp_path / "nowhere"), "--port", str(free_port())) == 66
