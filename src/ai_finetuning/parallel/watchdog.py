"""Detects a run of several processes that makes no progress, names the process that is behind, and ends the run."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from ..errors import localized
from ._upstream import store_of_processes
from .processes import STORE

LOGGER = logging.getLogger("ai_finetuning")
EXIT_CODE = 70
# Without progress here and without a sign of life of another process: a GPU's collective may wait for ever for one that
# was killed.
LOST_SECONDS = 25.0
_GONE, _LEFT = "gone", "left"  # the store cannot be asked; it has ended well
_BOARDS = itertools.count()  # a second run of a process must not read what was written in the first


class _StoreBoard:
    """What the processes say, in torch's store."""

    def __init__(self) -> None:
        self._store = store_of_processes("aift-watchdog")

    def write(self, key: str, value: str) -> None:
        self._store.set(key, value)

    def read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


class _FileBoard:
    """What the processes say, in files beside the one where they met, for processes that our launcher started: torch
    only ever appends to that one, which would grow by 80 MB a week for eight processes.
    """

    def __init__(self, store: Path) -> None:
        self._folder = store.with_name(f"{store.name}-board-{next(_BOARDS)}")
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def write(self, key: str, value: str) -> None:
        # By rename, so that nobody reads half of it; every key has one writer.
        new = self._folder / f"{key}.new"
        new.write_text(value, encoding="ascii")
        os.replace(new, self._folder / key)

    def read(self, key: str) -> str | None:
        try:
            return (self._folder / key).read_text(encoding="ascii")
        except FileNotFoundError:
            return None


class Watchdog:
    """A thread in every process that watches a counter of what the processes do together.

    A process that is late has counted less than those that wait for it, so the smallest count names it. On a standstill
    every process writes the stacks of all its threads to `folder/stacks-rank-N.txt` and leaves with code 70; the
    launcher ends the rest. Where a process was killed, the others, stuck in what they did with it, leave after
    LOST_SECONDS already.

    Args:
        progress: the counter of this process.
        timeout_seconds: without any progress here.
        folder: where the stacks go.
    """

    def __init__(self, progress: Callable[[], int], *, timeout_seconds: float, folder: Path) -> None:
        self._progress, self._timeout, self._folder = progress, timeout_seconds, folder
        self._rank, self._size = dist.get_rank(), dist.get_world_size()
        store = os.environ.get(STORE)
        self._board = _StoreBoard() if store is None else _FileBoard(Path(store))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)
        if kind is None:
            self._say(self._beat(self._rank), _LEFT)

    def _beat(self, rank: int) -> str:
        return f"beat-{rank}"

    def _watch(self) -> None:
        pause = min(5.0, self._timeout / 4, LOST_SECONDS / 5)
        seen, since = -1, time.monotonic()
        heard: dict[int, tuple[str | None, float]] = {}  # every process's last sign of life, and since when it is that
        for tick in itertools.count():
            if self._stop.wait(pause):
                return
            now = self._progress()
            self._say(str(self._rank), str(now))
            self._say(self._beat(self._rank), str(tick))
            if now != seen:
                seen, since, heard = now, time.monotonic(), {}
            still = time.monotonic() - since
            if still > self._timeout:
                self._end(*self._standstill(self._counts()), pause)
            elif still > LOST_SECONDS * 0.4:
                lost = self._lost(heard)
                if lost and still > LOST_SECONDS:
                    self._end(*_vanished(lost), pause)

    def _say(self, key: str, value: str) -> None:
        with contextlib.suppress(RuntimeError, OSError):  # it went with the process, or the machine, that held it
            self._board.write(key, value)

    def _beats(self) -> list[str | None]:
        """Every process's last sign of life; None for one that has not begun."""
        try:
            return [self._board.read(self._beat(rank)) for rank in range(self._size)]
        except (RuntimeError, OSError):
            return [_GONE] * self._size

    def _lost(self, heard: dict[int, tuple[str | None, float]]) -> list[int]:
        """The other processes that have said nothing new for some time; `heard` is brought up to date."""
        now = time.monotonic()
        for rank, beat in enumerate(self._beats()):
            if rank not in heard or heard[rank][0] != beat:
                heard[rank] = (beat, now)
        silent = [
            rank for rank, (beat, since) in heard.items() if now - since > LOST_SECONDS * 0.6 and rank != self._rank
        ]
        return [rank for rank in silent if heard[rank][0] not in (None, _LEFT)]

    def _counts(self) -> list[int]:
        """What every process last reported; -1 for one that never did."""
        counts = [self._board.read(str(rank)) for rank in range(self._size)]
        return [int(count) if count is not None else -1 for count in counts]

    def _standstill(self, counts: list[int]) -> tuple[str, str]:
        ranks = ", ".join(str(rank) for rank, count in enumerate(counts) if count == min(counts))
        return (
            f"{self._timeout:.0f} 秒間進まないので終了します。遅れているのはランク {ranks} です（各ランクの通信回数: {counts}）。",
            f"no progress for {self._timeout:.0f} s: exiting. Rank {ranks} is behind (exchanges by rank: {counts}).",
        )

    def _end(self, ja: str, en: str, pause: float) -> None:
        place = self._folder / f"stacks-rank-{self._rank}.txt"
        place.unlink(missing_ok=True)
        with place.open("x", encoding="utf-8") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        LOGGER.error(
            localized(
                f"{ja}スタックは {self._folder}/stacks-rank-*.txt にあります。",
                f"{en} The stacks of all ranks are in {self._folder}/stacks-rank-*.txt.",
            )
        )
        sys.stderr.flush()
        # The others may need a moment to notice and to write their own stacks; the launcher kills them when one is
        # gone.
        self._stop.wait(2 * pause)
        os._exit(EXIT_CODE)


def _vanished(lost: list[int]) -> tuple[str, str]:
    ranks = ", ".join(map(str, lost))
    return (
        f"ランク {ranks} のプロセスが {LOST_SECONDS:.0f} 秒間応答しません（強制終了か、PC の停止）。終了します。",
        f"rank {ranks} has not responded for {LOST_SECONDS:.0f} s (killed, or its machine stopped): exiting.",
    )
