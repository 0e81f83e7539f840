"""The folder of a run: one run at a time, nothing of others touched, nothing half-written."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from ..config.run_folder import CHECKPOINTS, CONFIG, ENVIRONMENT, LOCK, METRICS, RUN
from ..engine.checkpoint.store import CheckpointStore
from ..engine.faults import Faults
from ..errors import ConfigError, Reason, RunLockedError, StorageError, ToolkitError
from ..messages import argument, notice, warn
from ..parallel.processes import Peers, wait_for
from ..runs.folder import OWNER, STAGING, beside, files_of_run, read_run, refuse_links, validate_folder
from ..runs.phase import CHILD, phase, write_run
from ..runs.process import identity
from ..runs.stop import drop_earlier_stop
from ..runs.weights import RETURNED, drop_last, place_saved
from ..system.children import LAUNCHER
from ..system.files import TEMPORARY, fsync_folder, staging_folder, write_in_place


class OutputFolder:
    """A run's folder, locked while it is open; of several processes the main one writes, the others wait for it to
    open.

    Raises on opening:
        StorageError: the folder cannot be made or written.
        RunLockedError: another run holds it.
        ConfigError: files that are not ours, or links, carry names that the run would write.
    """

    def __init__(
        self, path: str | Path, *, keep: int, peers: Peers | None = None, faults: Faults | None = None
    ) -> None:
        self.path = Path(path)
        self._peers = peers or Peers()
        self.faults = faults or Faults()
        self.store = CheckpointStore(self.path / CHECKPOINTS, keep=keep, faults=self.faults)
        self._lock = FileLock(str(self.path / LOCK), timeout=0)
        self._made = False
        self._began = False

    def __enter__(self) -> OutputFolder:
        if self._peers.is_main:
            self._open()
        wait_for(self._peers)
        self.store.share(self._peers)
        return self

    def validate_free(self) -> None:
        """Refuses a folder in which another run is at work, before anything in it is touched; takes nothing.

        Raises:
            RunLockedError: another run holds it. ConfigError: it holds links under names of ours.
        """
        refuse_links(self.path)
        if not (self.path / LOCK).exists():
            return
        try:
            self._lock.acquire()
        except Timeout:
            raise self._in_use() from None
        self._lock.release()

    def _in_use(self) -> RunLockedError:
        owner = self._owner()
        return RunLockedError(
            f"{self.path} は別の実行（{owner.ja}）が使っています。終わるのを待つか、別の training.output_dir を指定してください。",
            f"{self.path} is in use by another run ({owner.en}); wait for it, or choose another training.output_dir.",
        )

    def _open(self) -> None:
        refuse_links(self.path)
        try:
            self._made = not self.path.exists()
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
            self._write_owner()
        except Timeout:
            raise self._in_use() from None
        except OSError as error:
            self._lock.release()
            raise StorageError(
                f"training.output_dir の {self.path} に書き込めません（{error}）。書き込める場所を指定してください。",
                f"training.output_dir {self.path} cannot be written ({error}); choose a writable folder.",
            ) from error
        try:
            validate_folder(self.path)
        except ConfigError:
            self.__exit__(None, None, None)
            raise
        self.store.clean()
        drop_earlier_stop(self.path)
        shutil.rmtree(self.path / STAGING, ignore_errors=True)
        for left in self.path.glob(TEMPORARY):
            left.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unlocks; reports a disk that failed meanwhile.

        Raises:
            StorageError: in place of the operating system's error.
        """
        if not self._peers.is_main:
            return
        with contextlib.suppress(OSError):
            (self.path / OWNER).unlink(missing_ok=True)
            if self._made and not self._began:  # refused before anything was written: leave no trace
                (self.path / LOCK).unlink(missing_ok=True)
                self.path.rmdir()
        self._lock.release()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO):
            raise storage_error(self.path, error) from error

    def _write_owner(self) -> None:
        owner = identity() | {"since": _now()}
        write_in_place(self.path / OWNER, json.dumps(owner).encode("utf-8"))

    def _owner(self) -> Reason:
        try:
            owner = json.loads((self.path / OWNER).read_text(encoding="utf-8"))
            text = f"pid {owner['pid']}, {owner['host']}, {owner['since']}"
            return Reason(text, text)
        except (OSError, ValueError, KeyError):
            return Reason("不明", "unknown")

    def run(self) -> dict[str, Any]:
        """The run.json of the run that is here; empty where there is none."""
        return read_run(self.path)

    def write_run(self, **values: Any) -> None:
        """Changes run.json in one step; the main process does."""
        if not self._peers.is_main:
            return
        write_run(self.path, self.run() | values)
        fsync_folder(self.path)

    def complete(self, *, files: list[str], **values: Any) -> None:
        """Says in run.json that the model which is in place now is the result, and forgets what a former one had left."""
        if not self._peers.is_main:
            return
        content = {name: value for name, value in self.run().items() if name != RETURNED}
        write_run(self.path, content | values | {"status": "completed", "files": files})
        fsync_folder(self.path)
        drop_last(self.path)

    def begin(self, *, resuming: bool, files: dict[str, str], **values: Any) -> None:
        """Makes the folder this run's: moves an earlier run away, writes the run's description."""
        self._began = True
        if not self._peers.is_main:
            return
        if not resuming:
            self._archive()
        for name, text in files.items():
            write_in_place(self.path / name, text.encode("utf-8"))
        launcher = os.environ.get(LAUNCHER, "")
        process = identity() | {"launcher": identity(int(launcher)) if launcher else None}
        began = {"started": _now(), "phase": phase("preparing"), "reason": None, CHILD: None}
        self.write_run(status="running", **process, **began, **values)

    def _archive(self) -> None:
        """Renames an earlier run to `<dir>.<time>`; files that are not ours stay."""
        run = self.run()
        if not (self.path / RUN).exists() or (isinstance(run.get(CHILD), dict) and "fingerprint" not in run):
            return  # nothing has begun there but the process that was started for this run
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        folder = beside(self.path, f".{stamp}")
        number = 1
        while folder.exists():
            number += 1
            folder = beside(self.path, f".{stamp}-{number}")
        folder.mkdir()
        for path in files_of_run(self.path):
            os.replace(path, folder / path.name)
        notice(
            f"{self.path} にあった以前の実行を {folder} に移しました（続きから再開するには aift resume {argument(folder)}）。",
            f"the earlier run in {self.path} was moved to {folder} (to go on with it: aift resume {argument(folder)}).",
        )

    def place_model(self, save: Callable[[Path], None], mark: str) -> list[str]:
        """Writes the model beside and moves it into place; returns the names of its files. Whenever the process is killed, the
        folder's weights are one whole set: a former one, this one, or none.

        Args:
            mark: see weights.place_saved().

        Raises:
            OSError: it cannot be written; checkpoints and an earlier model are left as they were.
        """
        staging = self.path / STAGING
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            self.faults.inject("final", 0)
            with _refusals_of_the_disk():
                save(staging)
            return sorted(place_saved(staging, self.path, mark))
        except Exception:  # what was trained is in memory still, and goes into a checkpoint
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def rehearse(self, save: Callable[[Path], None]) -> None:
        """Lets `save` write what place_model() will write but for the weights, beside, and throws it away.

        Raises:
            ConfigError: a folder is in the way of a file. OSError: it cannot be written.
        """
        staging = self.path / STAGING
        try:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
            save(staging)
            names = {path.name for path in staging.iterdir()} | {CONFIG, ENVIRONMENT, METRICS, RUN}
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        for name in sorted(names):
            if (self.path / name).is_dir():
                raise ConfigError(
                    f"{self.path / name} がフォルダーなので、学習の終わりに同じ名前のファイルを保存できません。移すか、別の training.output_dir を指定してください。",
                    f"{self.path / name} is a folder, and the run will save a file of that name; move it, or choose "
                    "another training.output_dir.",
                )

    def validate_disk_space(self, needed: int) -> None:
        """Raises StorageError where the disk has not the bytes that the run will need."""
        free = free_disk_bytes(self.path)
        if free < needed:
            raise StorageError(
                f"{self.path} のディスクの空きが {free / 1e9:.2f} GB で、必要な {needed / 1e9:.2f} GB に足りません。空けるか、"
                "save_total_limit を減らすか、別の output_dir を指定してください。",
                f"{self.path} has {free / 1e9:.2f} GB free and the run needs {needed / 1e9:.2f} GB; free some, "
                "lower save_total_limit or choose another output_dir.",
            )
        if free < 1.2 * needed:
            warn(
                f"ディスクの空き {free / 1e9:.2f} GB は必要な {needed / 1e9:.2f} GB に近いです。",
                f"{free / 1e9:.2f} GB of free disk is close to the {needed / 1e9:.2f} GB needed.",
            )


def validate_new_folder(folder: Path) -> None:
    """Raises ConfigError where a new folder is expected and the path exists, StorageError where the path cannot be
    read.
    """
    try:
        used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise not_written(folder, error) from error
    if used:
        raise ConfigError(
            f"出力先 {folder} は空ではありません。新しいフォルダーを指定してください。",
            f"the output folder {folder} is not empty; choose a new one.",
        )


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into that becomes `place` when the block ends well, and goes when it does not.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with staging_folder(folder.absolute()) as staging:
            with _refusals_of_the_disk():
                yield staging
            if folder.exists():
                folder.rmdir()
            os.replace(staging, folder)
        fsync_folder(folder.absolute().parent)
    except OSError as error:
        if isinstance(error, ToolkitError):
            raise
        raise not_written(folder, error) from error


def no_space(folder: Path, needed: int) -> StorageError:
    """A refusal to write `needed` bytes where there is no room for them."""
    free = free_disk_bytes(folder)
    return StorageError(
        f"{folder} のディスクの空きが {free / 1e9:.2f} GB で、必要な {needed / 1e9:.2f} GB に足りません。空けるか、別の場所を指定してください。",
        f"{folder} has {free / 1e9:.2f} GB free, and {needed / 1e9:.2f} GB are needed; free some, or choose "
        "another place.",
    )


def not_written(folder: Path, error: OSError) -> StorageError:
    """A refusal of the disk, where nothing half-written stayed."""
    return StorageError(
        f"{folder} に書き込めませんでした（{error}）。途中のものは残していません。空きと書き込み権限を確かめるか、別の場所を指定してください。",
        f"{folder} could not be written ({error}); no partial files were left. Check free space and "
        "permissions, or choose another place.",
    )


@contextlib.contextmanager
def _refusals_of_the_disk() -> Iterator[None]:
    """safetensors reports a full disk by its own error, which is not an OSError."""
    try:
        yield
    except Exception as error:
        if type(error).__name__ == "SafetensorError" and "I/O error" in str(error):
            raise OSError(str(error)) from error
        raise


def free_disk_bytes(path: Path) -> int:
    """Free bytes on the disk of a path that may not exist yet."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def storage_error(path: Path, error: OSError) -> StorageError:
    """A refusal to write in a run's folder, with the newest checkpoint and the way out."""
    newest, command = CheckpointStore(path / CHECKPOINTS).newest(), f"aift resume {argument(path)}"
    return StorageError(
        f"{path} に書き込めませんでした（{error}）。以前のチェックポイントは残っています（最新: {newest or 'なし'}）。空きを作ってから再開してください: {command}",
        f"{path} could not be written ({error}). Earlier checkpoints are intact (newest: {newest or 'none'}). Free some "
        f"space, then: {command}",
    )


def _now() -> str:
    return datetime.fromtimestamp(time.time(), timezone.utc).isoformat(timespec="seconds")
