"""What a process does that waits for one which will never answer, as a GPU's collective does after a kill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.support.patience import patience, until
from tests.support.ports import free_port

pytestmark = pytest.mark.faults

# Rank 0 stands still, as in a collective; rank 1 is what `end` makes of it. No launcher: nobody else ends them.
SCRIPT = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from ai_finetuning.parallel import watchdog
rank, folder, late = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "late"
factor = float(sys.argv[6])
watchdog.LOST_SECONDS = 2.0 * factor
if "AIFT_STORE" in os.environ:
    store = dist.FileStore(os.environ["AIFT_STORE"], 2)
else:
    store = dist.TCPStore("127.0.0.1", int(sys.argv[4]), 2, is_master=str(rank) == sys.argv[5], timeout=timedelta(seconds=60 * factor))
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
if rank == 1 and late:
    time.sleep(5 * factor)
with watchdog.Watchdog(lambda: 0, timeout_seconds=600, folder=folder):
    (folder / f"in-{rank}").touch()
    time.sleep((5 if late else 60) * factor)
"""


def ranks(folder: Path, kind: str, store: int | None) -> list[subprocess.Popen[str]]:
    port, factor = free_port(), patience(1)
    return [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(SCRIPT),
                str(rank),
                str(folder),
                kind,
                str(port),
                str(store),
                str(factor),
            ],
            env=os.environ | {"AIFT_LANG": "en"} | ({"AIFT_STORE": str(folder / "store")} if store is None else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]


def wait_for(*paths: Path) -> None:
    until(lambda: all(path.exists() for path in paths), 60, f"{paths} are there")


@pytest.mark.parametrize("store", [0, 1, None], ids=["the store stays", "the store goes too", "files of our launcher"])
def test_a_killed_process_is_named_and_those_that_wait_for_it_leave(tmp_path: Path, store: int | None):
    waiting, killed = ranks(tmp_path, "killed", store)
    try:
        wait_for(tmp_path / "in-0", tmp_path / "in-1")
        time.sleep(patience(1.5))
        killed.send_signal(signal.SIGKILL)
        output, _ = waiting.communicate(timeout=patience(40))
    finally:
        waiting.kill()
        killed.kill()
    assert waiting.returncode == 70, output
    assert re.search(r"rank 1 has not responded", output), output
    assert (tmp_path / "stacks-rank-0.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("store", [1, None], ids=["a store", "files of our launcher"])
def test_one_that_begins_late_and_one_that_ended_well_are_waited_for(tmp_path: Path, store: int | None):
    """Rank 1 starts its watch after rank 0 has long stood still, and stands still when rank 0 has left."""
    both = ranks(tmp_path, "late", store)
    try:
        outputs = [process.communicate(timeout=patience(60))[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert both[0].returncode == 0, outputs[0]
    assert "has not responded" not in "".join(outputs)
