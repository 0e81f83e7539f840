"""Memory that steps on a CPU free stays with the process until the run ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import resource, torch
from ai_finetuning.system.allocator import freed_memory_kept

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(megabytes << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

torch.set_num_threads(1)
with freed_memory_kept():
    first, again, held = faults(200), sum(map(faults, (190, 150, 180, 160, 200, 170))), resident()
print(first, again, held, resident())
"""


def measured(**changes: str) -> list[int]:
    """Page faults of a first large tensor and of six later ones together; megabytes resident inside and behind."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC", "LD_PRELOAD"))
    }
    done = subprocess.run([sys.executable, "-c", CODE], env=clean | changes, capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="counts as Linux does")
def test_a_tensor_finds_the_pages_of_the_one_before():
    first, again, held, behind = measured()
    assert again < 2 * first  # one or two may lie beside what small blocks have split; without it six times as many
    assert behind < held - 150  # a program that trains has its memory back


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="counts as Linux does")
def test_what_the_user_has_set_stands():
    first, again, _, _ = measured(MALLOC_MMAP_THRESHOLD_="131072")
    assert again > 4 * first
