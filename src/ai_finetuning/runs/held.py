"""A run that nobody works on, and that nobody begins while something is done with its folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..config.run_folder import LOCK
from ..errors import ConfigError, RunLockedError, StorageError
from ..messages import argument
from .folder import read_run, refuse_links
from .process import is_here
from .state import state_of
from .weights import weight_names


@contextlib.contextmanager
def held(path: Path) -> Iterator[dict[str, Any]]:
    """The run.json of a run at which no process of this PC is busy; none can begin before the block ends.

    Raises:
        RunLockedError: it is at work. OSError: the disk refuses.
    """
    from filelock import FileLock, Timeout  # what lists runs has no use for it, and it takes 50 ms

    lock = FileLock(str(path.resolve() / LOCK), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise _at_work(path) from None
    try:
        run = read_run(path)
        if state_of(run).at_work:
            raise _at_work(path)
        yield run
    finally:
        lock.release()


def _at_work(path: Path) -> RunLockedError:
    return RunLockedError(
        f"{path} は学習中か順番待ちです。止めてから（aift runs stop）もう一度実行してください。",
        f"{path} is at work or waiting; stop it first (aift runs stop).",
    )


@contextlib.contextmanager
def held_result(path: Path, *, model: bool = True) -> Iterator[dict[str, Any]]:
    """As `held`, of a run whose model is in its folder.

    Args:
        model: whether it has to be there.

    Raises:
        RunLockedError: it is at work, or may be on another PC. ConfigError: it has no model yet, or links lie under names of
            ours. StorageError: the disk refuses; the result is a whole one, the one that it was or the one that was asked for.
    """
    refuse_links(path)
    try:
        with held(path) as run:
            verdict = run.get("verdict")
            judged = isinstance(verdict, dict) and verdict.get("pending") is True
            if state_of(run).elsewhere or (judged and not is_here(run)):
                raise RunLockedError(
                    f"{path} は別の PC で始めた実行で、学習中かどうかはここからは分かりません。その PC で実行するか、終わってからにしてください。",
                    f"{path} began on another PC, and whether it is at work is not seen from here. Do this there, or once "
                    "it has ended.",
                )
            if model and not (isinstance(run.get("result"), dict) and weight_names(path)):
                shown = argument(path)
                raise ConfigError(
                    f"{path} にはまだ学習結果のモデルがありません。先に学習を終わらせてください: aift resume {shown}",
                    f"{path} holds no trained model yet. Finish the training first: aift resume {shown}",
                )
            yield run
    except (RunLockedError, StorageError):  # which are errors of the operating system too
        raise
    except OSError as error:
        raise StorageError(
            f"{path} に書き込めませんでした（{error}）。結果のモデルは壊れていません。空きと書き込み権限を確かめて、もう一度実行してください。",
            f"{path} could not be written ({error}). The model in it is whole. Check free space and permissions, and run "
            "the command again.",
        ) from error
