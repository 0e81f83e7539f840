"""What a process has freed goes back to the operating system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Blocks of a megabyte beside small ones that stay, by several threads: what uploads and requests leave behind.
CODE = """
import sys, threading
import psutil
from ai_finetuning.system import heap
if sys.argv[1] == "yes":
    heap.give_back()
kept = []
def use():
    for _ in range(8):
        blocks = [bytearray(1 << 20) for _ in range(4)]
        kept.append(bytearray(2000))
        del blocks
before = psutil.Process().memory_info().rss
for _ in range(4):
    threads = [threading.Thread(target=use) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
print(psutil.Process().memory_info().rss - before)
"""


def left(given_back: str) -> int:
    done = subprocess.run([sys.executable, "-c", CODE, given_back], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_blocks_go_back():
    assert left("yes") < 2 << 20 < left("no")
