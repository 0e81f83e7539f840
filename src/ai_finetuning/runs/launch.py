"""Starting a run as a process that nobody owns: whoever started it may end, and finds it again by its folder."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

from filelock import FileLock, Timeout

from ..config.run import RunConfig
from ..config.run_folder import CONFIG, CONSOLE, LOCK, RUN, STOP
from ..config.run_yaml import absolute_paths, describe_run
from ..config.section import with_values
from ..errors import ConfigError, RunLockedError, StorageError, UsageError
from ..system.children import isolated_environment, isolated_python
from ..system.files import fsync_folder, write_in_place
from .folder import read_run, refuse_links
from .listing import validate_name
from .phase import CHILD, change_run, phase
from .process import identity, is_alive
from .recorded import find_run
from .state import state_of

# What the child is: a hidden verb of the command, which says who it is before anything else.
VERB = ("runs", "begin")
# Seconds in which whoever starts a child writes down that it is the one.
_NAMED = 30.0
_TRIES = 1000


def launch(config: RunConfig, root: Path, name: str | None = None, *, wait: bool = False) -> Path:
    """Starts a training in a new folder; returns the folder. It goes on when this process ends.

    Args:
        config: what to train; relative paths are taken from where this process is. Its output_dir is replaced.
        root: the folder in which the run's is made.
        name: of the folder; None takes the time.
        wait: wait until no other run computes on the devices; else it starts at once.

    Raises:
        ConfigError: the name is taken or is none, or there is no data, or what no file may allow. StorageError: the
            folder cannot be made.
    """
    if config.data.train is None:
        raise ConfigError(
            "data.train がありません。学習データのファイルを指定してください。",
            "data.train is missing; name the training data.",
        )
    if config.model.trust_remote_code:
        raise ConfigError(
            "model.trust_remote_code は、別のプロセスとして始める学習には使えません。コードを読んで信頼できるモデルだけ、aift train ... "
            "model.trust_remote_code=true で学習してください。",
            "model.trust_remote_code cannot be given to a run that starts by itself. If you have read the model's code and "
            "trust it, train with aift train ... model.trust_remote_code=true.",
        )
    config = absolute_paths(config, Path.cwd())
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = _new_folder(root.absolute(), name)
        here = with_values(config, training=with_values(config.training, output_dir=str(folder)))
        write_in_place(folder / CONFIG, describe_run(here, {}).encode("utf-8"))
        planned = {"model": config.model.name, "method": config.effective_method}
        change_run(folder, planned=planned, started=_now())
        with _held(folder):
            _start(folder, ["train"], here=folder, wait=wait)
    except OSError as error:
        if isinstance(error, RunLockedError):
            raise
        raise StorageError(
            f"{root} に実行のフォルダーを作れません（{error}）。書き込める場所を指定してください。",
            f"no folder for the run can be made in {root} ({error}); choose a place that can be written.",
        ) from error
    return folder


def resume(folder: Path, changes: Sequence[str] = (), *, wait: bool = False) -> Path:
    """Goes on with a run by a process that nobody owns, as `aift resume FOLDER CHANGES` does.

    Args:
        folder: of the run, or one of its checkpoints.
        changes: key=value; relative paths are taken from where this process is.
        wait: as launch() takes it.

    Raises:
        InputNotFoundError: there is no run. RunLockedError: it is at work. ConfigError: a file in its folder is a link.
        StorageError: its folder cannot be written. UsageError: a change is no key=value.
    """
    odd = [item for item in changes if item.startswith("-") or "=" not in item]
    if odd:
        raise UsageError(f"{odd[0]} は key=value ではありません。", f"{odd[0]} is no key=value.")
    folder = folder.absolute()
    run = find_run(folder).folder
    refuse_links(run)
    begin(run, ["resume", str(folder), *changes], here=Path.cwd(), wait=wait)
    return run


def begin(folder: Path, arguments: Sequence[str], *, here: Path, wait: bool) -> None:
    """Starts the process that `aift runs begin FOLDER ARGUMENTS` is, unless one is at work in the folder.

    Args:
        folder: of a run, or of a job of the page.
        arguments: what the process does.
        here: its working folder.
        wait: as launch() takes it.

    Raises:
        RunLockedError: it is at work. StorageError: its folder cannot be written.
    """
    try:
        with _held(folder):
            _start(folder, list(arguments), here=here, wait=wait)
    except OSError as error:
        if isinstance(error, RunLockedError):
            raise
        raise StorageError(
            f"{folder} に書き込めません（{error}）。空きと書き込み権限を確かめてください。",
            f"{folder} cannot be written ({error}); check free space and permissions.",
        ) from error


def _new_folder(root: Path, name: str | None) -> Path:
    """A folder that nobody else has made at the same moment."""
    if name is not None:
        validate_name(name)
        try:
            (root / name).mkdir()
        except FileExistsError:
            raise ConfigError(
                f"{root / name} はもうあります。別の名前にしてください。",
                f"{root / name} exists already; choose another name.",
            ) from None
        return root / name
    stamp = datetime.fromtimestamp(time.time()).strftime("run-%Y%m%d-%H%M%S")
    for number in range(1, _TRIES):
        folder = root / (stamp if number == 1 else f"{stamp}-{number}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise FileExistsError(str(root / stamp))


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run's lock, while a child is started: of two who start it at once, one is refused."""
    try:
        with FileLock(str(folder / LOCK), timeout=0):
            if state_of(read_run(folder)).at_work:
                raise Timeout(str(folder / LOCK))
            yield
    except Timeout:
        raise RunLockedError(
            f"{folder} は別のプロセスが学習中か、順番待ちです。", f"{folder} is at work or waiting by another process."
        ) from None


def _start(folder: Path, arguments: list[str], *, here: Path, wait: bool) -> None:
    """Starts the child, whose first act is to wait until run.json names it.

    Args:
        here: its working folder, from which relative paths among the arguments are taken.
    """
    (folder / STOP).unlink(missing_ok=True)
    command = [*isolated_python("ai_finetuning"), *VERB, *(["--wait"] if wait else []), str(folder), *arguments]
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0)
    log = os.open(folder / CONSOLE, flags, 0o600)
    detached = getattr(subprocess, "DETACHED_PROCESS", 0) | getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
    try:
        # What it says goes into a file: a pipe that nobody reads any more would stop it.
        child = subprocess.Popen(
            command,
            cwd=here,
            env=isolated_environment() | {"PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            creationflags=detached,
        )
    finally:
        os.close(log)
    # Where this process lives on, somebody has to wait for the child, which else looks alive when it has ended.
    threading.Thread(target=child.wait, name="aift-run", daemon=True).start()
    now = phase("waiting" if wait else "preparing")
    try:
        change_run(folder, **{CHILD: identity(child.pid) | {"phase": now}})
    except OSError:
        child.kill()
        raise
    fsync_folder(folder)


def wait_until_named(folder: Path) -> None:
    """In the child: returns once run.json names this process.

    Raises:
        RunLockedError: it names another one, or none.
    """
    deadline = time.monotonic() + _NAMED
    while time.monotonic() < deadline:
        child = read_run(folder).get(CHILD)
        if isinstance(child, dict) and child.get("pid") == os.getpid() and is_alive(child):
            return
        time.sleep(0.02)
    raise RunLockedError(
        f"{folder / RUN} にこのプロセスの記録がないため、始めません。",
        f"{folder / RUN} does not name this process, which therefore begins nothing.",
    )


def _now() -> str:
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")
