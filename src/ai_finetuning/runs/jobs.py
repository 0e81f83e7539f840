"""Jobs that are no trainings, such as those of the page: a folder with the commands to run, one after the other, and a process that nobody
owns. It waits for the device as a training does, and whoever asks finds it again by its folder.

A job's folder has the files of a run's (`run.json` with the process and its phase, `console.log`, `stop.request`) and what
its commands write. Commands that have ended are not run again when a job goes on.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ..config.run_folder import CONSOLE
from ..errors import DataError, InputNotFoundError, Reason, StorageError
from ..messages import ANSI, displayable
from ..system.children import OWNER, isolated_environment, isolated_python
from ..system.files import subfolders
from . import launch, stop
from .folder import read_run
from .phase import change_run, tell_phase
from .state import State, state_of

# In the folder of the data, where no listing of uploads or runs looks.
FOLDER = ".jobs"
# The kind of those that never end by themselves.
API = "serve"
_ID = re.compile(r"[a-z]+-[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
# Characters at the end of a log among which a refusal is looked for, and of a reason.
_TAIL, _REASON = 16_384, 1000
_REFUSED = ("エラー: ", "error: ")


@dataclass(frozen=True)
class Step:
    """A command of a job.

    Attributes:
        argv: `aift` and what follows it, without `aift`; paths are absolute.
        may: exit codes beside 0 with which the job goes on.
    """

    argv: tuple[str, ...]
    may: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job as its folder tells it.

    Attributes:
        id: names it among the jobs of a server's data.
        kind: of what a screen started: the beginning of the id.
        about: what the screen wrote down.
        steps: its commands.
        done: how many of them have ended.
        codes: the exit codes of those.
        state: as of a run.
        made: seconds since 1970.
    """

    id: str
    folder: Path
    kind: str
    about: Mapping[str, Any]
    steps: tuple[Step, ...]
    done: int
    codes: tuple[int, ...]
    state: State
    made: float

    @property
    def commands(self) -> list[list[str]]:
        """What to type for the same."""
        return [["aift", *step.argv] for step in self.steps]


def new_folder(data: Path, kind: str) -> Path:
    """The folder of a new job, in which its screen may put what its commands read.

    Raises:
        StorageError: it cannot be made.
    """
    stamp = datetime.fromtimestamp(time.time()).strftime("%Y%m%d-%H%M%S")
    folder = data / FOLDER / f"{kind}-{stamp}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise StorageError(
            f"{folder} を作れません（{error.strerror or error}）。",
            f"{folder} cannot be made ({error.strerror or error}).",
        ) from error
    return folder


def start(folder: Path, steps: Sequence[Step], about: Mapping[str, Any], language: str) -> Job:
    """Writes a job down and starts its process, which waits for the device.

    Args:
        folder: of new_folder().
        about: what the screen needs to show it, as JSON holds it.
        language: `ja` or `en`, of what its commands say.

    Raises:
        StorageError: the folder cannot be written.
    """
    commands = [{"argv": step.argv, "may": step.may} for step in steps]
    try:
        change_run(
            folder, job={"steps": commands, "about": dict(about), "language": language, "codes": []}, made=time.time()
        )
    except OSError as error:
        raise StorageError(
            f"{folder} に書き込めません（{error}）。", f"{folder} cannot be written ({error})."
        ) from error
    return again(_read(folder))


def again(job: Job) -> Job:
    """Starts the process of a job that is not at work, for the first time or to go on.

    Raises:
        RunLockedError: it is at work. StorageError: its folder cannot be written.
    """
    if job.state.status == "completed":
        return job
    launch.begin(job.folder, ["job"], here=job.folder, wait=True)
    return _read(job.folder)


def end(job: Job) -> Job:
    """Ends a job at once, or takes it out of the queue; what its command has made so far stays.

    Raises:
        UsageError: it is not at work.
    """
    stop.stop(job.folder, "now")
    return _read(job.folder)


def find(data: Path, id: str, kind: str) -> Job:
    """The job of an id.

    Raises:
        InputNotFoundError: there is none of this kind.
    """
    folder = data / FOLDER / id
    if not _ID.fullmatch(id) or not id.startswith(f"{kind}-") or folder.is_symlink() or not folder.is_dir():
        raise _none()
    return _read(folder)


def kind_of(folder: Path) -> str | None:
    """The kind of the job that has a folder; None for a folder of anything else."""
    return folder.name.partition("-")[0] if folder.parent.name == FOLDER and _ID.fullmatch(folder.name) else None


def names_of(data: Path, kind: str) -> list[str]:
    """The ids of the jobs of a kind, the newest first; of thousands not all."""
    return sorted(
        (place.name for place in subfolders(data / FOLDER) if place.name.startswith(f"{kind}-")), reverse=True
    )


def listed(data: Path, kind: str, most: int | None = None) -> list[Job]:
    """The jobs of a kind, the newest first.

    Args:
        most: None takes all.
    """
    names, found = names_of(data, kind), []
    for name in names[:most]:
        with contextlib.suppress(InputNotFoundError):
            found.append(find(data, name, kind))
    return found


def at_work(data: Path, most: int = 100) -> dict[str, int]:
    """How many jobs compute or wait, by kind, among the newest ones."""
    names = [place.name for place in subfolders(data / FOLDER) if _ID.fullmatch(place.name)]
    found: Counter[str] = Counter()
    for name in sorted(names, key=lambda name: name.split("-", 1)[1], reverse=True)[:most]:
        values = read_run(data / FOLDER / name)
        if "job" in values and state_of(values).at_work:
            found[name.partition("-")[0]] += 1
    return dict(found)


def _none() -> InputNotFoundError:
    return InputNotFoundError("この作業はありません。", "there is no such job.")


def _read(folder: Path) -> Job:
    values = read_run(folder)
    job = values.get("job")
    try:
        assert isinstance(job, dict)
        state = state_of(values)
        steps = tuple(Step(tuple(map(str, one["argv"])), tuple(map(int, one["may"]))) for one in job["steps"])
        codes = tuple(map(int, job["codes"]))
        return Job(
            folder.name,
            folder,
            folder.name.partition("-")[0],
            dict(job["about"]),
            steps,
            len(codes),
            codes,
            replace(state, reason=None if state.reason is None else displayable(state.reason)),
            float(values["made"]),
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        raise _none() from None


def work(folder: Path) -> None:
    """The process of a job, once it has the device: runs what has not ended yet.

    Raises:
        ToolkitError: what a command refused, as it said it.
    """
    job = _read(folder)
    said = dict(read_run(folder)["job"])
    told = {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "AIFT_LANG": said["language"], OWNER: str(os.getpid())}
    environment = isolated_environment() | told
    tell_phase(folder, "training")
    for step in job.steps[job.done :]:
        command = [*isolated_python("ai_finetuning"), *step.argv]
        code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode
        if code not in (0, *step.may):
            refused = _refusal(folder, step, code)
            raise DataError(refused.ja, refused.en)
        said["codes"] = [*said["codes"], code]
        change_run(folder, job=said)
    change_run(folder, status="completed")


def last_said(folder: Path) -> list[str]:
    """The last lines of what a job has said, at most 16 kB, as a page may show them."""
    try:
        with (folder / CONSOLE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            said = file.read().decode("utf-8", "replace")
            return [displayable(line) for line in ANSI.sub("", said).splitlines()]
    except OSError:
        return []


def _refusal(folder: Path, step: Step, code: int) -> Reason:
    """Why a command ended, as it said it last, in the language in which it spoke."""
    lines = last_said(folder) if code > 0 else []
    for at in range(len(lines) - 1, -1, -1):
        for prefix in _REFUSED:
            if lines[at].startswith(prefix):
                said = "\n".join([lines[at].removeprefix(prefix), *lines[at + 1 :]])[:_REASON]
                return Reason(said, said)
    verb = f"aift {step.argv[0]}"
    if code < 0:
        return Reason(
            f"{verb} が強制終了されました（シグナル {-code}。メモリーが足りなかった場合もこうなります）",
            f"{verb} was killed (signal {-code}; short memory ends so as well)",
        )
    return Reason(f"{verb} が終了コード {code} で終わりました", f"{verb} ended with exit code {code}")
