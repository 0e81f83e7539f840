"""The processes that hold the models of conversations and of questions to several runs: one a loaded model, or one for
adapters over one base. They end when nobody has asked for five minutes, when a model that is asked for has no room beside
them, at once when a training takes their device, and with the server, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ModelError, Reason, RunLockedError
from ...messages import on_one_line
from ...runs import devices, jobs
from ...runs.weights import weight_names
from ...system.children import isolated_environment, isolated_python

MODULE = "ai_finetuning.apps.web.talker"
# Seconds without a question after which a model is closed, and between two looks at the trainings of this PC.
IDLE, _LOOK = 300.0, 0.5
# Characters of a log's last line that a message holds.
_SAID = 300
IDLED = Reason(
    "しばらく使われなかったため、モデルを閉じました。次の質問で読み込み直します。",
    "The model was closed because nobody asked for a while; the next question loads it again.",
)
TRAINING = Reason(
    "学習や作業が始まったため、モデルを閉じました。終わってから質問してください。",
    "A training or a job has started, so the model was closed. Ask again once it has ended.",
)
GAVE_WAY = Reason(
    "ほかのモデルのためにメモリーを空けたので、モデルを閉じました。次の質問で読み込み直します。",
    "The model was closed to make room for another one; the next question loads it again.",
)
CHANGED = Reason(
    "モデルの重みが入れ替わったため、読み込み直します。",
    "The model has other weights by now and is loaded again.",
)
_CLOSED = Reason("会話を終えました。", "The conversation was ended.")


def stamp_of(names: str | tuple[str, ...]) -> list[tuple[str, int, int]]:
    """What tells the weights in folders from others that take their place: names, sizes and times; empty of what is none."""
    found = []
    for name in [names] if isinstance(names, str) else names:
        with contextlib.suppress(OSError, ValueError):
            states = [(file, (Path(name) / file).stat()) for file in weight_names(Path(name))]
            found += [(file, state.st_size, state.st_mtime_ns) for file, state in states]
    return found


class Worker:
    """One process with a loaded model. All methods are called from the loop in which it was made.

    Attributes:
        ended: why it is no more; None while it lives.
        stamp: of the weights that it loads.
        lacked_room: whether it could not be loaded because memory was taken.
    """

    def __init__(self, names: str | tuple[str, ...], log: Path, idle: float = IDLE) -> None:
        """Starts it.

        Args:
            names: a model, as open_model takes it, which its base answers beside; or several that answer, each for itself.
            log: a file for what it says.
            idle: seconds without a question after which it ends.
        """
        self.stamp = stamp_of(names)
        words = [names] if isinstance(names, str) else ["--each", *names]
        self.ended: Reason | None = None
        self.lacked_room = False
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._log = log
        self._ready: asyncio.Future[dict[str, Any]] = self._loop.create_future()
        self._ready.add_done_callback(_seen)
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Queue[dict[str, Any]]] = {}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [*isolated_python(MODULE), "--idle", str(idle), *words],
                # An adapter's base that is not here is no reason to download it: nobody has asked for that.
                env=isolated_environment() | {"PYTHONUTF8": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        self.pid = self._process.pid
        threading.Thread(target=self._read, name="aift-talker", daemon=True).start()

    async def ready(self) -> dict[str, Any]:
        """What it says of its model once that is loaded: sides, system, positions, base, device, alone.

        Raises:
            ModelError: it cannot be loaded, or the process has ended.
        """
        return await asyncio.shield(self._ready)

    async def answer(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        """The messages of an answer, as talker.py sends them; the last one has `done`, or `ended` where the process is no
        more. Closing the iterator ends the answer.

        Args:
            request: asked, seed, options.
        """
        number, told = next(self._numbers), asyncio.Queue[dict[str, Any]]()
        self._asked[number] = told
        finished = False
        try:
            if not self._send({"do": "answer", "id": number, **request}):
                yield {"ended": self.ended or _CLOSED}
                return
            while not finished:
                message = await told.get()
                finished = "done" in message or "ended" in message
                yield message
        finally:
            self._asked.pop(number, None)
            if not finished:
                self._send({"do": "stop", "id": number})

    @property
    def loaded(self) -> bool:
        """Whether it can be asked."""
        return self.ended is None and self._ready.done()

    @property
    def rests(self) -> bool:
        """Whether it is loaded and nobody asks it."""
        return self.loaded and not self._asked

    async def over(self) -> None:
        """Returns once the process is no more."""
        await self._over.wait()

    def end(self, reason: Reason = _CLOSED) -> None:
        """Kills the process, which holds nothing that is not elsewhere."""
        if self.ended is None:
            self.ended = reason
        with contextlib.suppress(OSError):
            self._process.kill()

    def _send(self, message: dict[str, Any]) -> bool:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message, ensure_ascii=False).encode() + b"\n")
            self._process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def _read(self) -> None:
        """In a thread of its own: the pipe is read however slow a browser is."""
        assert self._process.stdout is not None
        with self._process.stdout as lines, contextlib.suppress(RuntimeError):  # of a loop that is closed
            for line in lines:
                self._loop.call_soon_threadsafe(self._take, json.loads(line))
            code = self._process.wait()
            self._loop.call_soon_threadsafe(self._gone, code)
        self._process.wait()

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            told = self._asked.get(message["id"])
            if told is not None:
                told.put_nowait(message)
        elif "ready" in message and not self._ready.done():
            self._ready.set_result(message["ready"])
        elif "failed" in message:
            self.ended, self.lacked_room = Reason(**message["failed"]), bool(message.get("room"))
        elif "idle" in message:
            self.ended = IDLED

    def _gone(self, code: int) -> None:
        if self.ended is None:
            self.ended = _died(code, self._log)
        if not self._ready.done():
            self._ready.set_exception(ModelError(self.ended.ja, self.ended.en))
        for told in self._asked.values():
            told.put_nowait({"ended": self.ended})
        with contextlib.suppress(OSError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        self._log.unlink(missing_ok=True)
        self._over.set()


def _seen(future: asyncio.Future[Any]) -> None:
    """A failure that nobody waits for is told by `ended`."""
    if not future.cancelled():
        future.exception()


def _busy(other: devices.Occupant) -> RunLockedError:
    """Why no model is loaded beside somebody who computes."""
    folder = Path(other.folder or "?")
    if jobs.kind_of(folder) == jobs.API:
        return RunLockedError(
            "API が動いているか、順番を待っているため、モデルを読み込みません。書き出しの画面で止めてから質問してください。",
            "An API is at work or waits for its turn, so no model is loaded. Stop it on the screen Export, then ask again.",
        )
    return RunLockedError(
        f"{folder} が計算中のため、モデルを読み込みません。終わってから質問してください。",
        f"{folder} is computing, so no model is loaded. Ask again once it has ended.",
    )


def _died(code: int, log: Path) -> Reason:
    """Why a process ended that said nothing about it."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        lines = []
    last = on_one_line(lines[-1])[:_SAID] if lines else ""
    killed = code == -signal.SIGKILL if os.name != "nt" else False
    ja, en = ("メモリーが足りなかったのかもしれません。", "Memory may have run out. ") if killed else ("", "")
    return Reason(
        f"会話のモデルのプロセスが終わりました（終了コード {code}）。{ja}{last}",
        f"The process of this conversation's model has ended (exit code {code}). {en}{last}".rstrip(),
    )


@dataclass
class Workers:
    """All of a server.

    Attributes:
        logs: a folder of this server's own, which close() removes.
        idle: seconds without a question after which a model is closed.
        busy: who computes on the devices that a model would take.
    """

    logs: Path
    idle: float = IDLE
    busy: Callable[[], Sequence[devices.Occupant]] = field(default=lambda: at_work())
    _workers: dict[str | tuple[str, ...], Worker] = field(default_factory=dict)
    _loading: asyncio.Lock | None = None
    _watching: asyncio.Task[None] | None = None
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def take(self, names: str | tuple[str, ...]) -> Worker:
        """The process of a model, or of several over one base, started where there is none. Whether it could be loaded is
        told by its ready(). Models that nobody asks give way to it where it has no room beside them.

        Args:
            names: as Worker takes them.

        Raises:
            RunLockedError: a training is at work on the device, or about to be.
        """
        found = await asyncio.to_thread(self.busy)
        if found:
            raise _busy(found[0])
        known = self._workers.get(names)
        if known is not None and known.ended is None and known.stamp != await asyncio.to_thread(stamp_of, names):
            known.end(CHANGED)  # by `aift runs best`, say
        if known is not None and known.loaded:
            return known
        self._loading = self._loading or asyncio.Lock()
        async with self._loading:  # one at a time, so that each sees the memory that the others have taken
            await self._settled()
            worker = self._workers.get(names)
            while worker is None or worker.ended is not None:
                worker = await self._load(names)
                resting = [one for one in self._workers.values() if one.rests] if worker.lacked_room else []
                if not resting:
                    break
                for one in resting:
                    one.end(GAVE_WAY)
                for one in resting:
                    await one.over()
            return worker

    async def _settled(self) -> None:
        """Returns once no process is loading for somebody who has gone meanwhile, and those that were ended are no more."""
        for worker in list(self._workers.values()):
            with contextlib.suppress(ModelError):
                await worker.ready()
            if worker.ended is not None:
                await worker.over()

    async def _load(self, names: str | tuple[str, ...]) -> Worker:
        worker = Worker(names, self.logs / f"talker-{next(self._numbers)}.log", self.idle)
        self._workers[names] = worker
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch())
        with contextlib.suppress(ModelError):  # who asks is told by ready()
            await worker.ready()
        return worker

    def of(self, names: str | tuple[str, ...]) -> Worker | None:
        """The process of a model, or of the one that there was last."""
        return self._workers.get(names)

    def close(self) -> None:
        """Ends all."""
        for worker in self._workers.values():
            worker.end()
        shutil.rmtree(self.logs, ignore_errors=True)

    async def _watch(self) -> None:
        """Ends all as soon as a training takes the device."""
        while any(worker.ended is None for worker in self._workers.values()):
            if await asyncio.to_thread(self.busy):
                for worker in self._workers.values():
                    if worker.ended is None:
                        worker.end(TRAINING)
            await asyncio.sleep(_LOOK)


def at_work() -> list[devices.Occupant]:
    """The trainings and jobs of this user that compute on the devices that a model would take, or wait for them."""
    try:
        own = set(devices.visible_devices())
        return [other for other in devices.occupants() if own & set(other.devices)]
    except OSError:  # no state folder, so that nobody can say it either
        return []
