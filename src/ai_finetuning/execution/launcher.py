"""Starts the processes of a run on one machine, and all of them anew when one dies; no port waits for a stranger.

They meet through a file in a folder of this user's alone (torch's FileStore), so that no store listens anywhere. What
is left are the ports that gloo and NCCL open on the loopback interface: their addresses stand in that file.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ..engine.hooks import SignalFlags
from ..parallel.processes import STORE
from ..system.children import LAUNCHER, isolated_environment
from ..system.cores import physical_cores
from ..system.files import is_private

# Seconds from SIGTERM to SIGKILL, under torchrun's name for it: a checkpoint may take longer than torchrun's 30.
GRACE, GRACE_SECONDS = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "540"
# Of the folders in which processes meet. One that nobody has written to for a day is of a machine that stopped: the
# watchdogs of a run write every few seconds.
_PREFIX, _LEFT_SECONDS = "aift-store-", 86_400
_OF_OTHER_LAUNCHERS = ("MASTER_", "TORCHELASTIC_", "GROUP_", "ROLE_")


@dataclass(frozen=True)
class Ended:
    """How the processes of the last attempt ended.

    Attributes:
        rank: of the first that failed; None where all ended well.
        code: its exit code, negative for a signal.
        stopped: whether this process was asked to stop them.
    """

    rank: int | None = None
    code: int = 0
    stopped: bool = False


def private_file(path: Path) -> IO[bytes]:
    """A new file that only this user can read, open for writing.

    Raises:
        FileExistsError: something is there, be it a link.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")


def launch(
    command: list[str],
    processes: int,
    logs: Path,
    *,
    max_restarts: int,
    watch: Callable[[], None],
    threads: int | None = None,
) -> Ended:
    """Runs `command` in every process until all have ended, and again, all of them, when one failed.

    SIGTERM and the first Ctrl-C are passed on once; the processes then have the grace time to end. A second Ctrl-C
    kills them.

    Args:
        command: of every process; its rank is in the environment, as torchrun writes it.
        processes: how many.
        logs: a folder; what they write goes to `run/attempt_N/RANK/std*.log` in it.
        max_restarts: how often they are started anew.
        watch: called about ten times a second.
        threads: of each process in the run that is resumed, taken where there are cores for them.
    """
    # On a local disk: FileStore locks its file, which not every network file system can do. mkdtemp makes it 0700.
    remove_left_stores()
    with tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True) as place, SignalFlags() as signals:
        for attempt in range(max_restarts + 1):
            folder = logs / "run" / f"attempt_{attempt}"
            given = _environment(processes, threads) | {STORE: str(Path(place) / f"store-{attempt}")}
            with _started(command, processes, folder, given) as children:
                ended = _follow(children, signals, watch)
            watch()
            if ended.rank is None or signals.stop:
                break
        return replace(ended, stopped=signals.stop is not None)


def remove_left_stores() -> None:
    """Removes folders in which processes of this user met when the machine stopped; a run at work is never this old."""
    now = time.time()
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if (
                is_private(folder)
                and now - max(path.stat().st_mtime for path in (folder, *folder.rglob("*"))) > _LEFT_SECONDS
            ):
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _started(
    command: list[str], processes: int, logs: Path, environment: dict[str, str]
) -> Iterator[list[subprocess.Popen[bytes]]]:
    children: list[subprocess.Popen[bytes]] = []
    common = environment | {LAUNCHER: str(os.getpid())}
    try:
        for rank in range(processes):
            folder = logs / str(rank)
            folder.mkdir(parents=True)
            with private_file(folder / "stdout.log") as out, private_file(folder / "stderr.log") as err:
                # A session of its own: the terminal's Ctrl-C comes to this process only, which passes it on once.
                child = subprocess.Popen(
                    command,
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            children.append(child)
        yield children
    finally:
        for child in children:
            _kill(child)


def _environment(processes: int, threads: int | None) -> dict[str, str]:
    cores = physical_cores()
    each = threads if threads is not None and threads * processes <= cores else max(1, cores // processes)
    given = {key: value for key, value in isolated_environment().items() if not key.startswith(_OF_OTHER_LAUNCHERS)}
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return (
        given
        | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(processes))
        | {name: loopback[0] for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if loopback}
        | {
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(each)),
            "PYTHONUTF8": "1",
        }
    )


def _follow(children: list[subprocess.Popen[bytes]], signals: SignalFlags, watch: Callable[[], None]) -> Ended:
    """Waits until all have ended; once one has failed or a stop was asked for, the others are told to end."""
    ended, deadline = Ended(), float("inf")
    while True:
        codes = [child.poll() for child in children]
        watch()
        failed = [(rank, code) for rank, code in enumerate(codes) if code]
        if ended.rank is None and failed:
            # A killed process first: those that fail because of it may be seen in the same moment.
            ended = Ended(*min(failed, key=lambda item: item[1]))
        if None not in codes:
            return ended
        if deadline == float("inf") and (failed or signals.stop):
            deadline = time.monotonic() + float(os.environ.get(GRACE, GRACE_SECONDS))
            for child in children:
                child.terminate()
        if time.monotonic() > deadline:
            for child in children:
                _kill(child)
        time.sleep(0.1)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """Ends it, with what it has started, if it is not gone yet."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if os.name == "posix":
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
        child.wait()
