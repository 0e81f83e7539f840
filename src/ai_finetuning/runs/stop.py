"""Asking a run to stop, by a file in its folder that it looks at after each step: it reaches runs of any system and host.

The file holds `{"how": ..., "of": ...}`: what is asked, and of which process. One of an earlier process of the run is no
request to the one that has resumed it.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from ..config.run_folder import STOP
from ..errors import Reason, StorageError, UsageError
from ..system.files import read_bounded, write_in_place
from .folder import read_run
from .phase import CHILD, change_run, is_mine
from .process import is_alive, process_of
from .recorded import saved_step
from .state import state_of

How = Literal["save", "best", "now"]
HOWS: tuple[How, ...] = get_args(How)
_LARGEST = 4096
# Seconds in which a killed process is gone.
_GONE = 10.0


def take_stop(folder: Path) -> How | None:
    """What was asked of this process by now, once; the file is removed."""
    request = _read(folder)
    if request is None:
        return None
    (folder / STOP).unlink(missing_ok=True)
    of, how = request.get("of"), request.get("how")
    return next((known for known in HOWS if known == how), None) if of is None or _is_of_mine(of) else None


def drop_earlier_stop(folder: Path) -> None:
    """Removes a request that was not made of this process."""
    request = _read(folder)
    if request is not None and not _is_of_mine(request.get("of")):
        (folder / STOP).unlink(missing_ok=True)


def _is_of_mine(of: object) -> bool:
    return isinstance(of, dict) and is_mine(of)


def _read(folder: Path) -> dict[str, Any] | None:
    """The request in a folder; None without one."""
    try:
        values = json.loads(read_bounded(folder / STOP, _LARGEST))
    except OSError:
        return None
    except (ValueError, RecursionError):
        values = None
    return values if isinstance(values, dict) else {}


def stop(folder: Path, how: How = "save") -> Reason:
    """Asks a run to stop; returns what will happen.

    Args:
        folder: of the run.
        how: `save`: saves a checkpoint at the end of the step and stops, to be resumed. `best`: evaluates once more and
            ends with the best weights as the result. `now`: ends its processes at once; what the last checkpoint,
            where there is one, holds is kept. A run on another PC does it at the end of its step.

    Raises:
        UsageError: it is not at work. StorageError: the request cannot be written.
    """
    run = read_run(folder)
    child = run.get(CHILD)
    state = state_of(run)
    of = child if isinstance(child, dict) and (state.elsewhere or is_alive(child)) else run
    if not state.at_work and not state.elsewhere:
        raise UsageError(f"{folder} は学習中ではありません。", f"{folder} is not at work, so there is nothing to stop.")
    request = {"how": how, "of": {key: of.get(key) for key in ("pid", "host", "created")}}
    try:
        write_in_place(folder / STOP, json.dumps(request).encode("utf-8"))
    except OSError as error:
        raise StorageError(
            f"{folder} に書き込めないため、止める指示を残せません（{error}）。",
            f"{folder} cannot be written ({error}), so that nothing can be asked of the run.",
        ) from error
    # Of a run in this very process, such as a notebook's, the end of the step is the soonest; and so it is where a file
    # does not tell when its process was created, since it may name any: whoever wrote it cannot know that.
    if how == "now" and not state.elsewhere and of.get("pid") != os.getpid() and of.get("created"):
        _kill(folder, of)
        saved = saved_step(folder)
        if saved is None:
            return Reason(
                "すぐに止めました。チェックポイントはまだないので、再開すると最初から始めます",
                "stopped at once; it has no checkpoint yet, so that resumed it begins anew",
            )
        return Reason(
            f"すぐに止めました。ステップ {saved:,} のチェックポイントから再開できます",
            f"stopped at once; its checkpoint of step {saved:,} is kept",
        )
    if state.status == "waiting":
        return Reason("順番待ちをやめます", "it gives up waiting")
    if how == "best":
        return Reason(
            "このステップの後で評価し、最良の重みを結果として終わります",
            "after this step it evaluates and ends with the best weights as its result",
        )
    if how == "now":
        return Reason("このステップの後で、保存せずに止まります", "it stops after this step, without saving")
    return Reason("このステップの後で保存して止まります", "it saves after this step and stops")


def _kill(folder: Path, of: dict[str, Any]) -> None:
    """Ends the processes of a run, whoever starts others first, and writes down that it was asked for.

    Args:
        of: the process that is at work, with the time of its creation; an earlier one of the run may live on with other
            work.
    """
    named = [values for values in (of.get("launcher"), of) if isinstance(values, dict) and values.get("created")]
    parents = [process_of(values) for values in named]
    family: list[psutil.Process] = []
    for process in filter(None, parents):
        family.append(process)
        try:
            family += process.children(recursive=True)
        except psutil.Error:
            continue
    for process in filter(None, parents):
        _kill_group(process.pid)
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue
    deadline = time.monotonic() + _GONE
    while any(map(is_alive, named)) and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / STOP).unlink(missing_ok=True)
    end(folder, of, "KeyboardInterrupt")


def _kill_group(pid: int) -> None:
    """Ends the group of a process that was launched with one of its own: in it are also those whose parents have ended."""
    if os.name != "nt":
        with contextlib.suppress(OSError):
            # A shell gives a group to a process, too, with others that are no concern of a run.
            if os.getsid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)


def end(folder: Path, of: dict[str, Any], reason: str) -> None:
    """Writes why a process of a run has ended, unless another one has taken the run over, or it has told so itself.

    Args:
        of: the process, as `identity` gives it.
        reason: the kind of the error and what it says.
    """
    run = read_run(folder)
    child = run.get(CHILD)
    same = ("pid", "host")
    try:
        if isinstance(child, dict) and all(child.get(key) == of.get(key) for key in same):
            change_run(folder, **{CHILD: child | {"reason": reason}})
        elif run.get("status") == "running" and all(run.get(key) == of.get(key) for key in same):
            change_run(folder, status="stopped", reason=reason)
    except OSError:  # the disk is full: the process is gone all the same, which state_of sees
        return
