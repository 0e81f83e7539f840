"""What a process has freed goes back to the operating system, or stays for its next steps."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ai_finetuning.system import heap

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


glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


@glibc
def test_freed_blocks_go_back():
    assert left("yes") < 2 << 20 < left("no")


# Steps as a training's: blocks of many sizes, written and freed. How many pages a step is given anew, and how much of what was
# freed is left in the end.
STEPS = """
import resource, sys
import psutil
from ai_finetuning.system import heap
def step():
    blocks = [bytearray(size << 20) for size in (1, 3, 9, 40, 70, 2)]
    del blocks
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def run():
    for _ in range(3):
        step()
    before = faults()
    for _ in range(4):
        step()
    return faults() - before
size = lambda: psutil.Process().memory_info().rss
start = size()
with heap.kept():
    inside, held = run(), size() - start
print(inside, held, size() - start, run())
"""


def steps(**environment: str) -> list[int]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=inherited | environment)
    return [int(part) for part in done.stdout.split()]


@glibc
def test_steps_are_given_no_new_pages_and_all_goes_back_behind_them():
    faults, held, left, others = steps()
    assert faults < 1000 < others  # a step writes 32,000 pages
    assert left < 4 << 20 < held


@glibc
@pytest.mark.parametrize("setting", [{"MALLOC_MMAP_MAX_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=4"}])
def test_a_heap_that_the_user_has_set_up_stays_as_it_is(setting: dict[str, str]):
    faults, held, *_ = steps(**setting)
    assert faults > 1000
    assert held < 70 << 20


class Older:
    """mallopt of glibc before 2.35, which refuses mappings above 32 MiB; no such library is at hand."""

    def __init__(self) -> None:
        self.has: dict[int, int] = {}

    def mallopt(self, number: int, value: int) -> int:
        if number == heap._MMAP_THRESHOLD and value > 32 << 20:
            return 0
        self.has[number] = value
        return 1

    def malloc_trim(self, _: int) -> int:
        return 1


def test_an_older_library_gets_the_most_that_it_takes(monkeypatch: pytest.MonkeyPatch):
    """Without, every block above 128 KiB would be a mapping from then on: more new pages than before, not fewer."""
    for name in heap._SETTINGS:
        monkeypatch.delenv(name, raising=False)
    library = Older()
    monkeypatch.setattr(heap, "_glibc", lambda: library)
    with heap.kept():
        assert library.has[heap._MMAP_THRESHOLD] == 32 << 20
    assert library.has[heap._MMAP_THRESHOLD] == 32 << 20
