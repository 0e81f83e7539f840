"""What takes too much time or memory ends with a refusal in words, whatever is at work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.systems import needs_limits

# (command, whose limits, the function that is at work) of each that a page has done with a file.
COMMANDS = {
    "table": ("data_table", "data.doctor.table.write_table"),
    "glance": ("data_glance", "data.glance.glance"),
    "questions": ("data_questions", "inference.question_files.read_questions"),
}
TOO_MUCH = {
    ("time", "ja"): ("while True: pass", "エラー: {file} を調べるのに 1 秒を超える計算が要る"),
    ("memory", "en"): ("bytearray(8 << 30)", "error: {file} takes more than 4 GiB of memory to read; divide it."),
}
CODE = """
import importlib, sys
from ai_finetuning.apps.cli import {verb}
from ai_finetuning.apps.cli.main import run
def work(*_, **__):
    {work}
setattr(importlib.import_module("ai_finetuning.{module}"), "{function}", work)
{verb}._SECONDS = {seconds}
sys.exit(run(sys.argv[1:]))
"""


@needs_limits
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("too_much", TOO_MUCH, ids="-".join)
def test_a_command_says_that_a_file_takes_too_much(
    command: str, too_much: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (verb, place), (work, said) = COMMANDS[command], TOO_MUCH[too_much]
    module, _, function = place.rpartition(".")
    code = CODE.format(verb=verb, module=module, function=function, work=work, seconds=1 if "time" in too_much else 60)
    monkeypatch.setenv("AIFT_LANG", too_much[1])
    file = tmp_path / "data.csv"
    file.write_text("質問,回答\n休みは？,日曜です。\n", encoding="utf-8")
    more = ["--out", str(tmp_path / "out")] if command == "table" else []
    line = [sys.executable, "-c", code, "data", command, str(file), *more, "--json", "-"]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", check=False, timeout=120)
    assert (done.returncode, done.stdout) == (65, "")
    (only,) = done.stderr.splitlines()
    assert only.startswith(said.format(file=file))


@needs_limits
@pytest.mark.parametrize(("work", "error"), [("while True: pass", "OutOfTime"), ("bytearray(3 << 30)", "MemoryError")])
def test_a_process_is_bounded(work: str, error: str):
    code = f"from ai_finetuning.apps.cli.limits import limit\nlimit(2 << 30, 2)\n{work}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1]


@needs_limits
def test_the_end_of_the_time_is_no_bad_row():
    # It comes while a row is judged, whose errors are collected.
    code = """
from ai_finetuning.apps.cli.limits import limit
from ai_finetuning.data.doctor import examination
from ai_finetuning.data.rows import Row
limit(4 << 30, 2)
while True:
    examination.refusal_of(Row({"instruction": "問い", "output": "答え"}, "a.jsonl:1"), None, "sft")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines()[-1].endswith("OutOfTime")
