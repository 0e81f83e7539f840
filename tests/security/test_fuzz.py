"""Hostile and damaged inputs for every reader, from fixed seeds: a refusal or an answer, within seconds and 2 GB, and never
a trace.

A worker process runs `aift` on one input after another, with a limit of memory and a timer (tests/support/fuzz_worker.py);
the inputs are in tests/support/fuzz_readers.py.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import environment, spawn
from tests.support.fuzz_readers import READERS, Place
from tests.support.patience import patience

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has neither the limits nor the timer of the worker"
)

ROOT = Path(__file__).parents[2]
# What a refusal ends with: usage, data, not there, not reachable, cannot be written, held, settings or model.
EXITS = {0, 64, 65, 66, 69, 74, 75, 78}
SECONDS = 5
QUICK, MANY, ALONE = 100, 2000, 10

Line = dict[str, Any]


def fuzz(folder: Path, seed: int, count: int, *readers: str, limit: float) -> list[Line]:
    """What the worker says of each input."""
    command = [sys.executable, "-m", "tests.support.fuzz_worker", str(folder), str(seed), str(count), *readers]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(PYTHONPATH=paths, TOKENIZERS_PARALLELISM="false", AIFT_CACHE=str(folder / "cache")),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=patience(limit),
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode:
        lines.append({"reader": lines[-1]["reader"] if lines else readers[0], "seed": lines[-1]["seed"] if lines else seed,
                      "code": f"the process ended with {done.returncode}", "seconds": 0.0, "text": done.stderr[-3000:]})  # fmt: skip
    return [line for line in lines if "code" in line]


def wrong(lines: list[Line]) -> list[str]:
    return [
        f"{line['reader']} seed {line['seed']}: {line['code']} after {line['seconds']} s\n{line['text'][-1500:]}"
        for line in lines
        if line["code"] not in EXITS or line["seconds"] > SECONDS or "Traceback" in line["text"]
    ]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Line]]:
    """The lines of each reader; one process for all of them, and another one from where it died."""
    folder = tmp_path_factory.mktemp("fuzz")
    waiting, lines = list(READERS), list[Line]()
    while waiting:
        lines += fuzz(folder, 0, QUICK, *waiting, limit=600)
        done = {line["reader"] for line in lines}
        waiting = [name for name in waiting if name not in done]
    return lambda name: [line for line in lines if line["reader"] == name]


@pytest.mark.parametrize("reader", READERS)
def test_an_input_of_a_stranger_is_read_or_refused(quick: Callable[[str], list[Line]], reader: str):
    lines = quick(reader)
    assert not wrong(lines)[:5]
    assert len(lines) == QUICK
    assert any(line["code"] for line in lines), "nothing was refused: are these inputs hostile?"


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_thousands_of_them(tmp_path: Path, reader: str):
    lines = fuzz(tmp_path, 10_000, MANY, reader, limit=900)
    assert not wrong(lines)[:5]
    assert len(lines) == MANY


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS)
def test_the_command_itself_ends_so_too(tmp_path: Path, reader: str):
    """As a process of its own, as a user starts it: nothing of an earlier input helps or hurts."""
    place = Place.at(tmp_path)
    start = READERS[reader].prepare(place)
    for seed in range(50_000, 50_000 + ALONE):
        work = tmp_path / "input"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        code, text = spawn(*READERS[reader].make(random.Random(f"{reader}-{seed}"), place, start, work))
        assert code in EXITS, f"seed {seed}: {text}"
        assert "Traceback" not in text, seed


def test_values_of_every_type_are_made():
    """The generator itself: rows, trees and bytes differ from seed to seed, and are the same for the same seed."""
    from tests.support.fuzz import changed, damaged, value

    rows = [value(random.Random(seed)) for seed in range(200)]
    assert {type(row) for row in rows} >= {str, int, float, list, dict, bool, type(None)}
    tree = {"a": [1, {"b": "c"}]}
    assert len({json.dumps(changed(tree, random.Random(seed))) for seed in range(50)}) > 25
    assert tree == {"a": [1, {"b": "c"}]}
    assert damaged(b"abc" * 50, random.Random(1)) == damaged(b"abc" * 50, random.Random(1))
