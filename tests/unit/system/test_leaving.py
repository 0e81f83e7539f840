"""A process that leaves at once has done what is registered for its end, and nothing of its interpreter's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import atexit, os, sys
from ai_finetuning.system.leaving import leave

class Abort:
    def __del__(self, abort=os.abort):
        abort()

sys.abort_at_end = Abort()
atexit.register(print, "registered")
print("said", end=" ")
leave(int(sys.argv[1]), orderly=sys.argv[2] == "orderly")
"""


@pytest.mark.parametrize(("code", "how", "said"), [(0, "orderly", "said registered\n"), (69, "now", "said ")])
def test_it_leaves_with_its_code_and_what_it_has_said(code: int, how: str, said: str):
    process = subprocess.run([sys.executable, "-c", PROGRAM, str(code), how], capture_output=True, text=True)
    assert (process.returncode, process.stdout) == (code, said), process.stderr


def test_a_reader_that_is_gone_is_no_failure():
    reading, writing = os.pipe()
    os.close(reading)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", PROGRAM, "0", "now"]
    process = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, env=buffered)
    os.close(writing)
    assert (process.returncode, process.stderr) == (0, b"")
