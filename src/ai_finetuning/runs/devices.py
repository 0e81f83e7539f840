"""Which runs of this user compute on which devices of this PC, and the queue of those that wait for one.

Every run has an entry in a folder of the user's state: a JSON file, and beside it a lock that its process holds. When
the process dies in whatever way, the operating system frees the lock, and the next reader removes the entry.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from ..messages import notice
from ..system import nvml
from ..system.files import read_bounded, write_in_place
from ..system.folders import state_folder

CPU = "cpu"
_LARGEST = 65_536
# Seconds between two looks at the queue.
_LOOK = 0.5


@dataclass(frozen=True)
class Occupant:
    """A run that computes, or waits to.

    Attributes:
        entry: its name in the queue; earlier ones sort first.
        devices: `cpu`, or `cuda:N` by the numbers of this PC.
        folder: of the run; empty where it has none.
        waits: whether it is still waiting.
    """

    entry: str
    devices: tuple[str, ...]
    folder: str
    waits: bool


def visible_devices() -> tuple[str, ...]:
    """What a run would compute on: all GPUs that this process may use, or the CPU."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = nvml.gpus()
    if not cards:
        return (CPU,)
    if allowed is None:
        return tuple(f"cuda:{card.index}" for card in cards)
    return tuple(f"cuda:{name.strip()}" for name in allowed.split(",")[: len(cards)])


class Place:
    """This process's entry in the queue; it goes with the process.

    Args:
        devices: that it wants.
        folder: of its run.
    """

    def __init__(self, devices: Sequence[str], folder: Path | None = None) -> None:
        self._devices, self._folder = tuple(devices), folder
        self._queue = state_folder("devices")
        self._entry = f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lock = FileLock(str(self._queue / f"{self._entry}.lock"), timeout=0, thread_local=False)

    def take(self) -> None:
        """Computes from now on, whoever else does."""
        self._lock.acquire()
        self._write(waits=False)

    def wait(self, look: Callable[[], None]) -> None:
        """Returns once no run computes on these devices and nobody has waited for longer; then this one does.

        Args:
            look: called about twice a second; it may raise to give the place up.
        """
        self._lock.acquire()
        self._write(waits=True)
        told = False
        while True:
            before = self._before()
            if not before:
                break
            if not told:
                _say(before)
                told = True
            look()
            time.sleep(_LOOK)
        self._write(waits=False)

    def leave(self) -> None:
        """Frees the devices."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)
        self._lock.release()
        with contextlib.suppress(OSError):
            (self._queue / f"{self._entry}.lock").unlink(missing_ok=True)

    def _before(self) -> list[Occupant]:
        return [
            other
            for other in occupants(self._queue, own=self._entry)
            if set(other.devices) & set(self._devices) and (not other.waits or other.entry < self._entry)
        ]

    @property
    def _file(self) -> Path:
        return self._queue / f"{self._entry}.json"

    def _write(self, *, waits: bool) -> None:
        values = {"devices": self._devices, "folder": str(self._folder or ""), "waits": waits}
        write_in_place(self._file, json.dumps(values).encode("utf-8"))


def _say(before: Sequence[Occupant]) -> None:
    named = ", ".join(sorted({other.folder or "?" for other in before}))
    notice(
        f"デバイスが空くのを待ちます（使用中・順番待ち: {named}）。",
        f"waiting for the device (in use or first: {named}).",
    )


def occupants(queue: Path | None = None, *, own: str = "") -> list[Occupant]:
    """The runs of this user that compute on this PC or wait to; entries of dead processes are removed.

    Args:
        queue: None is the user's.
        own: an entry that is left out.
    """
    queue = state_folder("devices") if queue is None else queue
    found = []
    for file in sorted(queue.glob("*.json")):
        if file.stem == own or not _is_held(file):
            continue
        with contextlib.suppress(OSError, ValueError, TypeError):
            values = json.loads(read_bounded(file, _LARGEST))
            devices = tuple(map(str, values["devices"]))
            found.append(Occupant(file.stem, devices, str(values["folder"]), bool(values["waits"])))
    return found


def _is_held(file: Path) -> bool:
    """Whether the process of an entry lives; else the entry is removed."""
    lock = FileLock(str(file.with_suffix(".lock")), timeout=0)
    try:
        lock.acquire()
    except (Timeout, OSError):
        return True
    try:
        file.unlink(missing_ok=True)
        file.with_suffix(".lock").unlink(missing_ok=True)
    except OSError:  # Windows removes no file that is open
        pass
    finally:
        lock.release()
    return False


_held: list[Place] = []


def hold(place: Place) -> None:
    """Lets a place that this process has waited for be the one of all its runs; it ends with the process."""
    _held.append(place)
    atexit.register(place.leave)


@contextlib.contextmanager
def occupying(devices: Sequence[str] | None = None, folder: Path | None = None) -> Iterator[None]:
    """Says, while the block runs, that this process computes; it starts at once, whoever else does.

    Args:
        devices: None are all that it may use.
    """
    if _held:
        yield
        return
    place: Place | None = None
    try:
        place = Place(visible_devices() if devices is None else devices, folder)
        place.take()
    except (OSError, RuntimeError):  # no home, or a full disk: nobody will wait for it, and it trains all the same
        place = None
    try:
        yield
    finally:
        if place is not None:
            place.leave()
