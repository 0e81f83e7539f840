"""Where this toolkit keeps what it can make again, and what is going on at the moment."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

from ..messages import warn
from .files import is_private


def cache_folder(kind: str) -> Path:
    """The folder of one kind of cached things (`tokens`, `kernels`): below AIFT_CACHE, else below the user's cache
    folder. What is read from it comes from `private_cache`.
    """
    if os.environ.get("AIFT_CACHE"):
        return Path(os.environ["AIFT_CACHE"]) / kind
    if os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ai_finetuning" / kind


def private_cache(kind: str) -> Path:
    """The same folder, made with mode 0700 where it is missing; where other users can write to it, or nobody can, a
    folder of this process's own that goes with it, and one line says so.

    Entries in it still need `is_private` before they are used: a folder may have been open to others before.
    """
    folder = cache_folder(kind)
    try:
        _make(folder)
    except OSError:
        return temporary_cache()
    real = folder.resolve()  # the user may have put a link to a larger disk there
    if is_private(real) and _is_safe_above(real.parent) and _is_safe_above(folder.parent):
        return folder
    _say_not_used(folder)
    return temporary_cache()


def state_folder(kind: str) -> Path:
    """The folder of one kind of what this user's processes are doing now: below AIFT_STATE, else below the user's state
    folder; made with mode 0700 where it is missing.

    Raises:
        OSError: it cannot be made, or other users can write to it.
    """
    if os.environ.get("AIFT_STATE"):
        base = Path(os.environ["AIFT_STATE"])
    elif os.name == "nt":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ai_finetuning" / "state"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support" / "ai_finetuning"
    else:
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "ai_finetuning"
    folder = base / kind
    _make(folder)
    if not is_private(folder.resolve()):
        raise PermissionError(str(folder))
    return folder


@lru_cache
def _say_not_used(folder: Path) -> None:
    warn(
        f"キャッシュ {folder} はほかのユーザーのものか、ほかのユーザーが書き込めるため使いません。今回は作り直します（自分のものなら `chmod -R go-w {folder.parent}`、"
        "そうでなければ AIFT_CACHE に自分のフォルダーを指定してください）。",
        f"the cache {folder} belongs to, or can be written by, other users and is not used: what it would hold is made "
        f"anew. If it is yours, `chmod -R go-w {folder.parent}`; else let AIFT_CACHE name a folder of your own.",
    )


def _is_safe_above(parent: Path) -> bool:
    """Whether nobody else can put another folder in the place of one in `parent` (/tmp keeps each to its owner)."""
    try:
        state = parent.stat()
    except OSError:
        return False
    return is_private(parent.resolve()) or (os.name != "nt" and state.st_uid == 0 and bool(state.st_mode & 0o1000))


def _make(folder: Path) -> None:
    """Every missing part, with mode 0700."""
    for part in reversed([folder, *folder.parents]):
        if not part.exists():
            part.mkdir(mode=0o700, exist_ok=True)


@lru_cache(maxsize=1)
def temporary_cache() -> Path:
    """A private folder that is removed when this process ends."""
    folder = tempfile.mkdtemp(prefix="aift-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
