"""Where a store is written: a folder that the user names, or an entry of the cache."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ...errors import DataError, RunLockedError, StorageError, UsageError
from ...messages import notice
from ...system.files import is_private, is_private_tree
from ...system.folders import private_cache, temporary_cache
from ..pieces import Reading
from .mapped import EVERY, MANIFEST, Manifest, StoredExamples, file_of, is_store, open_store, read_manifest
from .preparing import Changed, Encoder, Preparation, identity_of, prepare_store
from .writer import PROGRESS, read_progress, storing

# Oldest entries of the cache go when they grow beyond this.
LIMIT_BYTES = 2 * 2**30
_LOCK = ".lock"


def prepare_folder(
    asked: Preparation,
    folder: Path,
    *,
    overwrite: bool = False,
    encoder: Callable[[Reading], Encoder] | None = None,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> tuple[StoredExamples, Manifest]:
    """Writes a store into a folder of the user's: a new or empty one, or one in which the same preparation was
    interrupted, which goes on. A store of the same data and settings that is there is read through and stays.

    Args:
        overwrite: replaces another store.
        encoder, on_bytes: see prepare_store.

    Raises:
        UsageError: the folder holds something else. RunLockedError: another process prepares it. DataError: a store of
            the same data is damaged; and see prepare_store.
    """
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if overwrite:
            _clear(folder)
        elif is_store(folder):
            if identity_of(read_manifest(folder)) == asked.identity:
                return open_store(folder, every_block=True)
            raise _taken(folder, "別のデータや設定で用意したデータ", "data prepared from other files or settings")
        elif (folder / PROGRESS).is_file():
            if read_progress(folder, asked.key) is None:
                raise _other_part(folder)
        elif any(path.name != _LOCK and path not in _own(folder) for path in folder.iterdir()):
            raise _taken(folder, "別のファイル", "other files")
        try:
            prepare_store(asked, folder, encoder=encoder, on_bytes=on_bytes)
        except Changed:
            raise _other_part(folder) from None
        return open_store(folder)


def _other_part(folder: Path) -> UsageError:
    return _taken(
        folder,
        "別のデータや設定の、途中の結果",
        "what an interrupted preparation of other files or settings left",
    )


def _taken(folder: Path, ja: str, en: str) -> UsageError:
    return UsageError(
        f"{folder} には{ja}があります。別のフォルダーを指定するか、用意したデータを置き換えるなら --overwrite を付けてください。",
        f"{folder} holds {en}; choose another folder, or replace prepared data with --overwrite.",
    )


def _own(folder: Path) -> list[Path]:
    """The files of a store."""
    return [folder / MANIFEST, folder / PROGRESS, *(file_of(folder, name) for name in EVERY)]


def _clear(folder: Path) -> None:
    """Removes a store, the manifest first."""
    others = [path.name for path in folder.iterdir() if path.name != _LOCK and path not in _own(folder)]
    if others:
        raise UsageError(
            f"{folder} には用意したデータ以外のファイル（{', '.join(others[:3])}）があります。別のフォルダーを指定してください。",
            f"{folder} holds other files than prepared data ({', '.join(others[:3])}); choose another folder.",
        )
    with storing(folder):
        for path in _own(folder):
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder.

    Raises:
        RunLockedError: one is in it.
    """
    lock = FileLock(str(folder / _LOCK), timeout=0)
    with storing(folder):
        try:
            lock.acquire()
        except Timeout:
            raise RunLockedError(
                f"{folder} は別のプロセスがデータを用意しています。終わるまで待ってください。",
                f"another process is preparing data in {folder}; wait until it has ended.",
            ) from None
    try:
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            (folder / _LOCK).unlink()


def cached_store(
    asked: Preparation, *, encoder: Callable[[Reading], Encoder] | None = None
) -> tuple[StoredExamples, Manifest]:
    """The store of some files, out of the cache where it is there; else it is written there. One that was interrupted
    goes on. Of several processes that want the same one writes it.

    Raises:
        DataError: see prepare_store. StorageError: the disk refuses.
    """
    cache = private_cache("tokens")
    folder = cache / asked.identity
    obtained = _opened(folder)
    if obtained is not None:
        return obtained
    lock = FileLock(str(cache / f"{asked.identity}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        notice(
            "別のプロセスが同じデータを用意しています。終わるのを待ちます。",
            "another process is preparing the same data; waiting for it.",
        )
        lock.acquire()
    except (OSError, NotImplementedError):  # a file system without locks
        folder = temporary_cache() / asked.identity
    try:
        obtained = _opened(folder)
        if obtained is None:
            if folder.exists() and not is_private_tree(folder):
                folder = temporary_cache() / asked.identity
            with storing(folder):
                (folder / MANIFEST).unlink(missing_ok=True)
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                prepare_store(asked, folder, encoder=encoder)
            except StorageError:  # what is there of it would keep the disk full
                shutil.rmtree(folder, ignore_errors=True)
                raise
            obtained = open_store(folder)
    finally:
        lock.release()
    _trim(cache, folder)
    return obtained


def _opened(folder: Path) -> tuple[StoredExamples, Manifest] | None:
    """An entry of the cache; None where there is none, where somebody else may have written it, or it is damaged."""
    if not is_store(folder) or not is_private_tree(folder):
        return None
    try:
        obtained = open_store(folder)
    except DataError:
        return None
    with contextlib.suppress(OSError):
        os.utime(folder)
    return obtained


def _trim(cache: Path, used: Path) -> None:
    """Keeps the cache below its limit; the entry in use stays, and so does one that is being written."""
    with contextlib.suppress(OSError):
        for path in cache.glob("*.npz"):  # of versions before the store
            path.unlink(missing_ok=True)
        entries = sorted(
            (path for path in cache.iterdir() if path != used and is_private(path) and is_store(path)),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
        kept = sum(path.stat().st_size for path in used.glob("*"))
        for path in entries:
            kept += sum(file.stat().st_size for file in path.glob("*"))
            if kept > LIMIT_BYTES:
                shutil.rmtree(path, ignore_errors=True)
                (cache / f"{path.name}.lock").unlink(missing_ok=True)
