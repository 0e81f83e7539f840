"""The processes that hold the models of conversations: real ones, with the embedded model and an adapter on it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.support.adapters import with_changing_adapter
from tests.support.systems import needs_sigkill

from ai_finetuning.apps.web.room import needed_bytes, refuse_without_room
from ai_finetuning.apps.web.workers import CHANGED, GAVE_WAY, IDLED, TRAINING, Worker, Workers
from ai_finetuning.embedded import model_folder
from ai_finetuning.errors import ModelError, RunLockedError
from ai_finetuning.inference.session import open_model
from ai_finetuning.models.generation import generate_answers
from ai_finetuning.models.source import find_model
from ai_finetuning.runs.devices import Occupant
from ai_finetuning.system.children import isolated_environment

BASE = "embedded:kotoha-tiny"
QUESTION = "日本の首都はどこですか。"
ASKED = {"history": [], "question": QUESTION, "system": None}
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes with one thread each, which is what tests that share a machine have."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on the embedded model that changes its answers."""
    folder = tmp_path_factory.mktemp("adapter")
    model = with_changing_adapter(open_model(BASE).model)
    model.peft_config["default"].base_model_name_or_path = BASE
    model.save_pretrained(folder)
    return folder


async def _texts(worker: Worker, request: dict[str, Any]) -> tuple[dict[str, str], list[dict[str, Any]]]:
    said: dict[str, str] = {}
    others = []
    async for message in worker.answer(request):
        if "t" in message:
            said[message["side"]] = said.get(message["side"], "") + message["t"]
        else:
            others.append(message)
    return said, others


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs it in a loop of its own, in a thread: the browser's tests leave one running in this one."""
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, work).result()


def _request(**options: Any) -> dict[str, Any]:
    return {"asked": {"base": ASKED, "tuned": ASKED}, "seed": None, "options": GREEDY | options}


def test_one_process_answers_as_both_models_stops_when_asked_and_is_killed(adapter: Path, tmp_path: Path) -> None:
    opened = open_model(str(adapter))
    conversation = [{"role": "user", "content": QUESTION}]
    alone = {}
    for side, on in (("base", False), ("tuned", True)):
        with opened.adapter(on):
            alone[side] = generate_answers(opened.model, opened.tokenizer, [conversation], **GREEDY)[0].text

    async def talk() -> None:
        busy: list[Occupant] = []
        workers = Workers(tmp_path, busy=lambda: busy)
        worker = await workers.take(str(adapter))
        ready = await worker.ready()
        assert ready["sides"] == ["base", "tuned"]
        assert ready["positions"] > 0
        said, others = await _texts(worker, _request())
        assert said == alone
        assert said["base"] != said["tuned"]
        assert [item["end"] for item in others[:2]] == ["length", "length"]
        assert others[-1] == {"id": 1, "done": True}
        assert await workers.take(str(adapter)) is worker

        # Other weights under the name of a model that is loaded, as `aift runs best` puts them there.
        os.utime(adapter / "adapter_model.safetensors", (1, 1))
        former, worker = worker, await workers.take(str(adapter))
        assert former.ended == CHANGED
        assert (await _texts(worker, _request()))[0] == alone

        # Whoever stops reading ends the answer, and the next one is not held up by it.
        answer = worker.answer(_request(max_new_tokens=500, min_new_tokens=500))
        async for message in answer:
            if "t" in message:
                break
        await answer.aclose()
        said, others = await _texts(worker, _request())
        assert said == alone

        # A training that takes the device closes the model, in the middle of an answer too, and says why.
        answer = worker.answer(_request(max_new_tokens=500, min_new_tokens=500))
        last: dict[str, Any] = {}
        async for last in answer:
            if "t" in last and not busy:
                busy.append(Occupant("1", ("cpu",), "outputs/faq", waits=False))
        assert last == {"ended": TRAINING}
        assert worker.ended == TRAINING
        assert not psutil.pid_exists(worker.pid)
        with pytest.raises(RunLockedError, match="outputs/faq"):
            await workers.take(str(adapter))
        assert list(tmp_path.iterdir()) == []

    _run(talk())


def test_a_model_that_nobody_asks_is_closed_and_says_so(tmp_path: Path) -> None:
    async def wait() -> None:
        workers = Workers(tmp_path, idle=0.3, busy=list)
        worker = await workers.take(BASE)
        assert (await worker.ready())["sides"] == ["tuned"]
        while worker.ended is None:
            await asyncio.sleep(0.05)
        assert worker.ended == IDLED
        said, others = await _texts(worker, {"asked": {"tuned": ASKED}, "seed": 1, "options": {}})
        assert (said, others) == ({}, [{"ended": IDLED}])

    _run(wait())


def test_a_model_that_nobody_asks_gives_way_to_one_without_room(tmp_path: Path) -> None:
    large = tmp_path / "large"
    shutil.copytree(model_folder(BASE), large)
    with (large / "model-more.safetensors").open("wb") as file:
        file.truncate(2**43)  # 8 TiB, of which none is on the disk

    async def ask() -> None:
        workers = Workers(tmp_path / "logs", busy=list)
        workers.logs.mkdir()
        first = await workers.take(BASE)
        assert first.rests
        second = await workers.take((str(large),))
        with pytest.raises(ModelError, match="GiB"):
            await second.ready()
        assert first.ended == GAVE_WAY
        assert not psutil.pid_exists(first.pid)

    _run(ask())


def test_a_model_is_not_loaded_beside_one_that_is_still_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where whoever asked for that one has left the page."""
    started: list[Worker] = []
    beside: list[Worker] = []

    class Watched(Worker):
        def __init__(self, *given: Any) -> None:
            beside.extend(one for one in started if one.ended is None and not one.loaded)
            super().__init__(*given)
            started.append(self)

    monkeypatch.setattr("ai_finetuning.apps.web.workers.Worker", Watched)

    async def ask() -> None:
        workers = Workers(tmp_path, busy=list)
        left = asyncio.create_task(workers.take(BASE))
        while not started:
            await asyncio.sleep(0.01)
        left.cancel()
        second, again = await asyncio.gather(workers.take((BASE,)), workers.take(BASE))
        assert (await second.ready())["sides"] == ["0"]
        assert again.loaded
        assert (started, beside) == ([again, second], [])
        workers.close()

    _run(ask())


def test_a_model_that_is_not_there_is_told_to_whoever_asks(tmp_path: Path) -> None:
    async def ask() -> None:
        worker = await Workers(tmp_path, busy=list).take(str(tmp_path / "nowhere"))
        with pytest.raises(ModelError, match="nowhere"):
            await worker.ready()

    _run(ask())


def test_a_base_that_is_not_here_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody listens
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    values = {"peft_type": "LORA", "r": 4, "base_model_name_or_path": "org/not-here"}
    (adapter / "adapter_config.json").write_text(json.dumps(values), encoding="utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(b"")

    async def ask() -> None:
        worker = await Workers(tmp_path, busy=list).take(str(adapter))
        with pytest.raises(ModelError, match=r"downloads no model.*org/not-here.*HF_HUB_OFFLINE"):
            await worker.ready()

    _run(ask())


SERVER = """
import asyncio, sys
from pathlib import Path
from ai_finetuning.apps.web.room import needed_bytes, refuse_without_room
from ai_finetuning.apps.web.workers import Worker
async def main():
    worker = Worker("embedded:kotoha-tiny", Path(sys.argv[1]) / "log")
    print(worker.pid, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


@needs_sigkill
def test_the_process_ends_with_a_server_that_is_killed(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path)], stdout=subprocess.PIPE, env=isolated_environment(), text=True
    )
    assert server.stdout is not None
    worker = psutil.Process(int(server.stdout.readline()))
    server.send_signal(signal.SIGKILL)
    server.wait()
    server.stdout.close()
    worker.wait(60)


def test_a_model_without_room_is_refused_before_it_is_loaded() -> None:
    source = find_model(BASE)
    needed = needed_bytes(source, None)
    assert needed > needed_bytes(source, 8) > needed_bytes(source, 4) > 0
    refuse_without_room(source, None, "auto", free=needed)
    with pytest.raises(ModelError, match="GiB") as refused:
        refuse_without_room(source, None, "auto", free=needed - 1)
    assert "メモリーが足りない" in refused.value.ja
