"""The queue of runs that wait for a device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.support.commands import environment
from tests.support.patience import until
from tests.support.systems import needs_sigkill

from ai_finetuning.errors import PreemptedError
from ai_finetuning.runs.devices import Place, occupants, occupying
from ai_finetuning.system.children import isolated_environment

HOLDER = """
import sys
from pathlib import Path
from ai_finetuning.runs.devices import Place
place = Place(["cpu"], Path("held"))
place.take()
print("taken", flush=True)
input()
"""


@pytest.fixture(autouse=True)
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of this test's own."""
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "state"))
    return tmp_path / "state" / "devices"


class Waiter(threading.Thread):
    """Waits for its place in a thread."""

    def __init__(self, *devices: str) -> None:
        super().__init__(daemon=True)
        before = len(occupants())
        self.place, self.began = Place(devices), threading.Event()
        self.start()
        until(lambda: len(occupants()) > before, 10, "it is in the queue")

    def run(self) -> None:
        self.place.wait(lambda: None)
        self.began.set()


def test_a_job_begins_when_the_device_is_free(queue: Path):
    with occupying(["cpu"]):
        first = Waiter("cpu")
        other = Waiter("cuda:0")
        until(other.began.is_set, 10, "another device is free")
        second = Waiter("cpu")
        with occupying(["cpu"]):  # typed into a terminal: at once
            assert [item.waits for item in occupants()].count(True) == 2
        assert not first.began.wait(0.8)
    until(first.began.is_set, 10, "the first begins")
    assert not second.began.wait(0.8)
    first.place.leave()
    until(second.began.is_set, 10, "the second begins")
    second.place.leave()
    other.place.leave()
    assert list(queue.iterdir()) == []


@needs_sigkill
def test_a_job_begins_when_the_holder_dies(queue: Path):
    held = environment(PYTHONPATH=isolated_environment()["PYTHONPATH"])
    command = [sys.executable, "-c", HOLDER]
    with subprocess.Popen(command, env=held, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"taken\n"
        waiter = Waiter("cpu")
        assert [item.folder for item in occupants() if not item.waits] == ["held"]
        assert not waiter.began.wait(0.8)
        os.kill(holder.pid, signal.SIGKILL)
        until(waiter.began.is_set, 10, "it begins")
        assert [item.waits for item in occupants()] == [False]
    waiter.place.leave()


def test_a_job_gives_its_place_up(queue: Path):
    def look() -> None:
        raise PreemptedError("", "")

    with occupying(["cpu"]):
        place = Place(["cpu"])
        with pytest.raises(PreemptedError):
            place.wait(look)
        place.leave()
        assert len(occupants()) == 1


def test_a_run_begins_where_the_queue_cannot_be_written(queue: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("AIFT_STATE", str(tmp_path / "file"))
    with occupying(["cpu"]):
        pass
