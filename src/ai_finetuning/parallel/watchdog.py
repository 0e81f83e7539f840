"""Notices that a run of several processes stands still, says which process is behind, and ends it."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from ..errors import localized

LOGGER = logging.getLogger("ai_finetuning")
EXIT_CODE = 70


class Watchdog:
    """A thread in every process that watches a counter of what the processes do together.

    A process that is late has counted less than those that wait for it, so the smallest count names it. On a standstill every
    process writes the stacks of all its threads to `folder/stacks-rank-N.txt` and leaves with code 70; the launcher ends the rest.

    Args:
        progress: the counter of this process.
        timeout_seconds: without any progress here.
        folder: where the stacks go.
    """

    def __init__(self, progress: Callable[[], int], *, timeout_seconds: float, folder: Path) -> None:
        self._progress, self._timeout, self._folder = progress, timeout_seconds, folder
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        self._store = dist.PrefixStore("aift-watchdog", dist.distributed_c10d._get_default_store())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        pause = min(5.0, self._timeout / 4)
        seen, since = -1, time.monotonic()
        while not self._stop.wait(pause):
            now = self._progress()
            self._store.set(str(self._rank), str(now))
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._timeout:
                self._end(self._counts())

    def _counts(self) -> list[int]:
        """What every process last reported; -1 for one that never did."""
        return [int(self._store.get(str(r))) if self._store.check([str(r)]) else -1 for r in range(self._size)]

    def _end(self, counts: list[int]) -> None:
        late = [rank for rank, count in enumerate(counts) if count == min(counts)]
        ranks = ", ".join(map(str, late))
        place = self._folder / f"stacks-rank-{self._rank}.txt"
        with place.open("w", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        LOGGER.error(
            localized(
                f"{self._timeout:.0f} 秒間進まないので終了します。遅れているのはランク {ranks} です（各ランクの通信回数: {counts}）。スタックは {self._folder}/stacks-rank-*.txt にあります。",
                f"no progress for {self._timeout:.0f} s: leaving. Rank {ranks} is behind (exchanges by rank: {counts}); the stacks of all ranks are in {self._folder}/stacks-rank-*.txt.",
            )
        )
        sys.stderr.flush()
        # The others may need a moment to notice and to write their own stacks; the launcher kills them when one is gone.
        self._stop.wait(2 * min(5.0, self._timeout / 4))
        os._exit(EXIT_CODE)
