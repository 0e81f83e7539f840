"""Files written and copied so that a link, or another user of the machine, changes nothing of ours."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import ModelError
from ..messages import notice

# What a process that was killed leaves of `replacing`; names of run folders (runs/folder.py) hold the pattern.
TEMPORARY = ".aift-*.tmp"
# A subfolder of templates that transformers reads and saves with a tokenizer.
_TEMPLATES = "additional_chat_templates"


def read_bounded(path: Path, limit: int) -> bytes:
    """A regular file that may come from somebody else, whole.

    Raises:
        OSError: it is not there, or no regular file (a pipe would never end). ValueError: it holds more than `limit` bytes.
    """
    if not path.is_file():
        raise FileNotFoundError(str(path))
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"more than {limit:,} bytes")
    return content


def is_plain(path: Path) -> bool:
    """Whether a path is a regular file itself: no link, and no pipe, which would be waited for."""
    return path.is_file() and not path.is_symlink()


# Entries of a folder that are looked at: it may be one of somebody else, with any number of them.
_MOST_ENTRIES = 1000


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without hidden ones; of one that cannot be read none, and of a very full one only
    some, which is said.
    """
    try:
        with os.scandir(folder) as entries:
            found = list(itertools.islice(entries, _MOST_ENTRIES + 1))
        names = [entry.name for entry in found[:_MOST_ENTRIES] if entry.is_dir()]
    except OSError:
        return []
    if len(found) > _MOST_ENTRIES:
        notice(
            f"{folder} には {_MOST_ENTRIES:,} を超えるファイルやフォルダーがあり、残りは調べていません。",
            f"{folder} holds more than {_MOST_ENTRIES:,} files and folders; the others are not looked at.",
        )
    return [folder / name for name in sorted(names) if not name.startswith(".")]


def fsync_folder(folder: Path) -> None:
    """Makes renames in a folder durable, where the operating system can (Windows cannot open folders)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well: fsynced, then renamed.

    It is made under a name that nobody can guess and that nothing had before, so that no link is followed; a link at
    `path` itself is replaced.

    Args:
        mode: of the file, less the umask.

    Raises:
        OSError: it cannot be written; `path` is as it was.
    """
    temporary = path.with_name(TEMPORARY.replace("*", secrets.token_hex(8)))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(temporary, flags, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def write_in_place(path: Path, content: bytes) -> None:
    """Replaces a file by this content in one durable step; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


def appended(path: Path) -> BinaryIO:
    """A file open at its end, without a half line there; a new one is for this user only."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags, 0o600), "r+b")
    content = file.read()
    whole = content.rfind(b"\n") + 1
    file.truncate(whole)
    file.seek(whole)
    return file


@contextlib.contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A folder of path's name to build in, inside a private one with a random name beside `path`; what is left of it
    goes when the block ends.

    Raises:
        OSError: it cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=f".staging-{path.name}-", dir=path.parent))
    try:
        inside = private / path.name  # the usual mode, which the private folder has not
        inside.mkdir()
        yield inside
    finally:
        shutil.rmtree(private, ignore_errors=True)


def is_private(path: Path) -> bool:
    """Whether a file or folder belongs to this user or to root, nobody else can write to it, and it is no link; always
    true on Windows, where the user's profile has these rights.
    """
    if os.name == "nt":
        return True
    try:
        state = path.lstat()
    except OSError:
        return False
    mode = state.st_mode
    if path.is_symlink() or state.st_uid not in (os.geteuid(), 0) or mode & 0o002:
        return False
    return not mode & 0o020 or _is_own_group(state.st_gid)


def _is_own_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user (of the user's name, with no other member)."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and number == user.pw_gid and set(group.gr_mem) <= {user.pw_name}


def is_private_tree(folder: Path) -> bool:
    """Whether a folder and everything in it is private."""
    return is_private(folder) and all(is_private(path) for path in folder.rglob("*"))


def refuse_links_outside(folder: Path | None, *, names: str = "*") -> None:
    """Refuses a model's or adapter's folder whose files point elsewhere: what they point to would be copied out.

    A link may point to a file in the folder, or to a blob of the hub's cache.

    Args:
        names: pattern of the files that matter.

    Raises:
        ModelError: with the link's name and where it points.
    """
    if folder is None or not folder.is_dir():
        return
    from huggingface_hub.constants import HF_HUB_CACHE

    whole = folder.resolve()
    cache, own_blobs = Path(HF_HUB_CACHE).resolve(), whole.parent.parent / "blobs"
    for path in sorted([*folder.glob(names), *(folder / _TEMPLATES).glob(names)]):
        if path.is_dir() or not path.exists():
            continue
        real = path.resolve()
        blob = real.parent.name == "blobs" and real.is_relative_to(cache)
        if not (real.is_relative_to(whole) or blob or (real.parent == own_blobs and whole.parent.name == "snapshots")):
            name = path.relative_to(folder)
            raise ModelError(
                f"{folder} の {name} はフォルダーの外の {real} へのリンクです。書き出すとその内容が含まれてしまうため、断りました。意図したものなら、"
                "リンクをファイルのコピーに置き換えてください。",
                f"{name} in {folder} is a link to {real}, outside the folder, whose content would be written out with "
                "the model. If that is meant, put a copy of the file in the link's place.",
            )
        if not path.is_file():  # a pipe or a device, which has no end
            name = path.relative_to(folder)
            raise ModelError(
                f"{folder} の {name} は普通のファイルではありません。取り除いてください。",
                f"{name} in {folder} is no regular file; remove it.",
            )
