"""Encodes rows in several processes at once. Each opens the tokenizer by its path; nothing but data goes to them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, BinaryIO

from ...messages import notice
from ...system.children import isolated_environment
from ..cache import tokenizer_digest
from ..files import RowBatch
from ..pieces import Reading
from .plain import to_plain
from .preparing import Encoded, Here
from .wire import receive, receive_answer, send, send_batch

# A worker has a core of its own: threads of its libraries would share it with the others.
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
# A tokenizer looks up its pieces all over its memory, and takes and gives back some for each of them: in huge pages and one
# arena (of glibc 2.35 on, where the kernel has such pages on demand) it needs less time (docs/scale.md). What the user has set stays.
_HEAP = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "MALLOC_ARENA_MAX": "1"}
_SECONDS = 10  # that a process gets to end


class _Worker:
    """One process."""

    def __init__(self, command: Sequence[str], setup: Any) -> None:
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_HEAP | isolated_environment() | _ONE_THREAD,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to: BinaryIO = self._process.stdin  # type: ignore[assignment]
        self._from: BinaryIO = self._process.stdout  # type: ignore[assignment]
        self._setup: Any = setup
        send(self._to, setup)
        self._known = False

    def encode(self, batch: RowBatch, heading: Sequence[str] | None) -> Encoded | None:
        """The batch encoded; None where this process cannot.

        Raises:
            OSError, EOFError: it has ended, or its tokenizer is another. Headless: the heading is needed.
        """
        if not self._known:
            answer, _ = receive(self._from)
            if answer["digest"] != self._setup["digest"]:
                raise EOFError
            self._known = True
        try:
            send_batch(self._to, batch, heading)
        except (TypeError, ValueError):
            return None
        return receive_answer(self._from)

    def end(self) -> None:
        """Tells the process that nothing more comes."""
        with contextlib.suppress(OSError):
            self._to.close()

    def close(self) -> None:
        """Waits until the process has ended."""
        self.end()
        try:
            self._process.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()


class Pool:
    """Workers, and this process for what they cannot do.

    Args:
        command: starts a worker.
        count: of workers.
        tokenizer: what they have to open; it is saved where they find it.
        reading: how rows become tokens.
    """

    def __init__(self, command: Sequence[str], count: int, tokenizer: Any, reading: Reading) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="aift-tokenizer-"))
        tokenizer.save_pretrained(self._folder)
        setup = {
            "tokenizer": str(self._folder),
            "digest": tokenizer_digest(tokenizer),
            "reading": to_plain(reading),
        }
        self._workers = [_Worker(command, setup) for _ in range(count)]
        self._free: SimpleQueue[_Worker | None] = SimpleQueue()
        for worker in self._workers:
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(count)
        self._here, self._lock, self._told = Here(tokenizer, reading), Lock(), False
        self.ahead = 2 * count

    def submit(self, batch: RowBatch, heading: Sequence[str] | None, limit: int | None) -> Future[Encoded]:
        """See preparing.Encoder; there is no limit for several processes."""
        assert limit is None
        return self._threads.submit(self._encode, batch, heading)

    def _encode(self, batch: RowBatch, heading: Sequence[str] | None) -> Encoded:
        worker = self._free.get()
        obtained: Encoded | None = None
        try:
            obtained = worker.encode(batch, heading) if worker is not None else None
        except (OSError, EOFError, ValueError, KeyError):
            worker = None
            self._tell()
        finally:
            self._free.put(worker)
        if obtained is not None:
            return obtained
        with self._lock:
            return self._here.submit(batch, heading, None).result()

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            notice(
                "データを用意するプロセスが使えなくなったため、このプロセスで続けます。",
                "a process that prepares the data cannot be used; this process goes on in its place.",
            )

    def close(self) -> None:
        """Ends the workers."""
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:  # so that all of them end at the same time
            worker.end()
        for worker in self._workers:
            worker.close()
        shutil.rmtree(self._folder, ignore_errors=True)
