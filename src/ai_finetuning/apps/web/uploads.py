"""Files that people upload: received as they come, bounded, under a name of ours, each in a folder of its own.

`DATA/u-…/` holds the file (`data.csv`), `upload.json` (what people call it, its columns) and what was made of it: tables,
divisions. Names from outside are only ever shown.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import anyio.to_thread

from ...config.run_folder import CONFIG
from ...embedded import PREFIX, data_file
from ...errors import InputNotFoundError, RunLockedError, StorageError, ToolkitError, UsageError
from ...messages import on_one_line
from ...system.files import is_plain, read_bounded, replacing, subfolders
from .api import valid_id
from .job_routes import refuse_used
from .site import Site

KINDS = (".csv", ".tsv", ".xlsx", ".jsonl", ".json", ".txt")
# Bytes of one file, and of everything in the folder of the data.
MOST, QUOTA = 200_000_000, 2_000_000_000
RECORD, TRASH, TRAIN, EVAL = "upload.json", ".trash", "train.jsonl", "eval.jsonl"
_NAME = re.compile(r"u-[0-9a-f]{12}")
_PART = ".part-"
_SHIPPED = "embedded-"
_RECORD_BYTES, _CONFIG_BYTES = 1 << 20, 1 << 22
_WRITTEN = 1 << 18  # bytes that are written at once
_LONGEST = 200  # characters of a name
_ABANDONED = 3600.0  # seconds after which a half file belongs to a server that is gone


@dataclass(frozen=True)
class Upload:
    """A file of the user's.

    Attributes:
        path: what to train on: the file itself, or the training side where it was divided.
        shown: what people call it; only ever shown.
        columns: roles of columns that were chosen, as `data.columns`.
        sheet: of a workbook, as `data.sheet`; a divided one has no sheets any more.
        evaluated: the evaluation side where it was divided.
        id, folder: where it lies.
        file: as it was uploaded; `file_sheet` is what it is read by.
        share: the part of the rows that is the evaluation side.
        made: seconds since 1970.
        received: whether somebody sent it, so that the original is elsewhere; answers kept in a conversation are here only.
        grown: how many times rows have been added since it was made.
    """

    path: Path
    shown: str
    columns: dict[str, str] | None = None
    sheet: str | None = None
    evaluated: Path | None = None
    id: str = ""
    folder: Path = Path()
    file: Path = Path()
    file_sheet: str | None = None
    share: float | None = None
    size: int = 0
    made: float = 0.0
    received: bool = False
    grown: int = 0

    @property
    def settings(self) -> list[str]:
        """Of reading the file as it was uploaded, as the command line takes them."""
        given = []
        if self.columns:
            given.append(f"data.columns={json.dumps(self.columns, ensure_ascii=False)}")
        if self.file_sheet is not None:
            given.append(f"data.sheet={self.file_sheet}")
        return given

    @property
    def reading(self) -> str:
        """Names what the file is read as: with other columns or another sheet it is another table."""
        return hashlib.sha256(json.dumps([self.columns, self.file_sheet], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def table(self) -> Path:
        """The folder of its pages (data/paged.py)."""
        return self.folder / f"table-{self.reading}"


def shown_name(header: str) -> str:
    """A name from a header, percent-encoded, as it is shown: the last part, on one line, without controls; of a long one its
    beginning and its ending, by which it is read.
    """
    text = unicodedata.normalize("NFC", unquote(header, errors="replace")).replace("\\", "/")
    name = text.rstrip("/").rpartition("/")[2]
    name = on_one_line(name)
    ending = Path(name).suffix if len(name) > _LONGEST else ""
    ending = ending if ending.lower() in KINDS else ""
    return name[: _LONGEST - len(ending)] + ending or "data"


def kind_of(shown: str) -> str:
    """The ending of a file that can be uploaded.

    Raises:
        UsageError: another kind.
    """
    kind = Path(shown).suffix.lower()
    if kind not in KINDS:
        raise UsageError(
            f"{shown} の種類 {kind or '（拡張子なし）'} は読めません。{'・'.join(KINDS)} のファイルを置いてください。",
            f"{shown}: files of kind {kind or '(no extension)'} cannot be read; bring {', '.join(KINDS)}.",
        )
    return kind


def too_large(shown: str, most: int = MOST) -> UsageError:
    """The refusal of a large file."""
    return UsageError(
        f"{shown} は {most // 1_000_000:,} MB を超えています。分けてから置くか、ファイルを指定して aift train で学習してください。",
        f"{shown} is larger than {most // 1_000_000:,} MB; divide it, or train on it with aift train.",
    )


async def receive(
    site: Site,
    header: str,
    length: int | None,
    parts: AsyncIterator[bytes],
    *,
    most: int = MOST,
    quota: int = QUOTA,
) -> Upload:
    """Writes a body to a new upload. Whatever ends it early leaves nothing behind.

    Args:
        header: the file's name, percent-encoded.
        length: the bytes that were announced, which may be none, or not true.
        parts: the bytes as they come.
        most, quota: bytes of a file, and of all.

    Raises:
        UsageError: another kind, empty, or more than `most` bytes. StorageError: no room, by quota or disk.
    """
    shown = shown_name(header)
    kind = kind_of(shown)
    if length is not None and length > most:
        raise too_large(shown, most)
    left = quota - await anyio.to_thread.run_sync(_used, site.data)
    digest, size, waiting = hashlib.sha256(), 0, bytearray()
    with _part(site.data) as part:
        with os.fdopen(os.open(part / f"data{kind}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", 0) as file:
            async for some in parts:
                size += len(some)
                if size > most:
                    raise too_large(shown, most)
                if size > left:
                    raise StorageError(
                        f"置いたデータが合わせて {quota // 1_000_000:,} MB を超えます。使わないデータを削除してください。",
                        f"all data here would be more than {quota // 1_000_000:,} MB; delete what is no longer used.",
                    )
                waiting += some
                if len(waiting) >= _WRITTEN:
                    digest.update(waiting)
                    await anyio.to_thread.run_sync(file.write, bytes(waiting))
                    waiting.clear()
            digest.update(waiting)
            await anyio.to_thread.run_sync(file.write, bytes(waiting))
        if not size:
            raise UsageError(f"{shown} は空です。", f"{shown} is empty.")
        record = {"shown": shown, "kind": kind, "size": size, "sha256": digest.hexdigest(), "made": time.time()}
        return await anyio.to_thread.run_sync(_keep, site, part, record)


def adopt(site: Site, file: Path, shown: str, *, columns: dict[str, str] | None = None) -> Upload:
    """Makes an upload of a file that the server has made; the file is moved.

    Args:
        file: of one of KINDS.
        shown: what it is called.
        columns: roles of its columns.

    Raises:
        StorageError: it cannot be written.
    """
    with _part(site.data) as part:
        size = file.stat().st_size
        os.replace(file, part / f"data{file.suffix.lower()}")
        record = {"shown": shown[:_LONGEST], "kind": file.suffix.lower(), "size": size, "made": time.time()}
        return _keep(site, part, record | ({"columns": columns} if columns else {}))


@contextlib.contextmanager
def _part(data: Path) -> Iterator[Path]:
    """A new folder for what is no upload yet; what has not become one by then is removed.

    Raises:
        StorageError: the disk refuses.
    """
    part = data / f"{_PART}{secrets.token_hex(8)}"
    try:
        part.mkdir(mode=0o700, parents=True)
        yield part
    except ToolkitError:  # some of them are OSErrors as well
        raise
    except OSError as error:
        raise _no_room(data, error) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _keep(site: Site, part: Path, record: dict[str, Any]) -> Upload:
    _write(part, record)
    id = f"u-{secrets.token_hex(6)}"
    os.rename(part, site.data / id)
    return find(site, id)


def _write(folder: Path, record: dict[str, Any]) -> None:
    with replacing(folder / RECORD, mode=0o600) as file:
        file.write(json.dumps(record, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))


def _no_room(folder: Path, error: OSError) -> StorageError:
    reason = error.strerror or type(error).__name__
    return StorageError(f"{folder} に書けません（{reason}）。", f"{folder} cannot be written ({reason}).")


def _used(folder: Path) -> int:
    """Bytes of everything in the folder; what a server that is gone left half is removed on the way."""
    with contextlib.suppress(OSError):
        for part in folder.glob(f"{_PART}*"):
            if time.time() - part.stat().st_mtime > _ABANDONED:
                shutil.rmtree(part, ignore_errors=True)
    used = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it has gone meanwhile
            used += file.stat().st_size if is_plain(file) else 0
    return used


def find(site: Site, id: str) -> Upload:
    """The upload of an id; `embedded-NAME` is data that ships with the toolkit.

    Raises:
        UsageError: it is no id. InputNotFoundError: there is none.
    """
    valid_id(id)
    if id.startswith(_SHIPPED):
        file = data_file(PREFIX + id.removeprefix(_SHIPPED))
        record: dict[str, Any] = {"shown": id.removeprefix(_SHIPPED), "kind": file.suffix, "size": file.stat().st_size}
        folder = site.data / id
        if (folder / RECORD).exists():
            record |= _record(folder)
        return _upload(id, folder, file, record)
    folder = site.data / id
    if not _NAME.fullmatch(id) or folder.is_symlink() or not folder.is_dir():
        raise _no_such()
    record = _record(folder)
    return _upload(id, folder, folder / f"data{record['kind']}", record)


def _upload(id: str, folder: Path, file: Path, record: dict[str, Any]) -> Upload:
    if record["kind"] not in KINDS or not is_plain(file):
        raise _no_such()
    upload = Upload(
        path=file,
        shown=str(record["shown"]),
        columns=record.get("columns") or None,
        sheet=record.get("sheet"),
        id=id,
        folder=folder,
        file=file,
        file_sheet=record.get("sheet"),
        size=int(record.get("size", 0)),
        made=float(record.get("made", 0.0)),
        received="sha256" in record,
        grown=int(record.get("grown", 0)),
    )
    share = record.get("share")
    divided = divided_folder(upload, share) if isinstance(share, float) else None
    if divided is None or not all(is_plain(divided / name) for name in (TRAIN, EVAL)):
        return upload
    # Its rows are JSON Lines with the headings as keys.
    return replace(upload, path=divided / TRAIN, sheet=None, evaluated=divided / EVAL, share=share)


def count_rows(path: Path) -> int:
    """Rows of a side of divided data, one a line."""
    with path.open("rb") as file:
        return sum(1 for _ in file)


def divided_folder(upload: Upload, share: float) -> Path:
    """Where the two sides of a division lie: of a file that has grown elsewhere than before, since a run may read those."""
    state = f"-{upload.grown}" if upload.grown else ""
    return upload.folder / f"split-{upload.reading}-{round(1000 * share)}{state}"


def _record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_bounded(folder / RECORD, _RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not {"shown", "kind"} <= record.keys():
        raise _no_such()
    return record


def _no_such() -> InputNotFoundError:
    return InputNotFoundError("このデータはありません（削除されたか、ごみ箱にあります）。", "there is no such data.")


def change(upload: Upload, **values: Any) -> None:
    """Writes other columns, another sheet or another division down.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        upload.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shipped = {"shown": upload.shown, "kind": upload.file.suffix, "size": upload.size}
        record = _record(upload.folder) if (upload.folder / RECORD).exists() else shipped
        _write(upload.folder, record | values)
    except OSError as error:
        raise _no_room(upload.folder, error) from None


def list_uploads(site: Site) -> list[Upload]:
    """Every upload, the newest first."""
    found = []
    for folder in subfolders(site.data):
        if _NAME.fullmatch(folder.name):
            with contextlib.suppress(InputNotFoundError):
                found.append(find(site, folder.name))
    return sorted(found, key=lambda upload: -upload.made)


def users(site: Site, upload: Upload) -> list[str]:
    """The names of the runs at work, or waiting, that read an upload."""
    found = []
    for entry in site.list_runs(fresh=True):
        if entry.status in ("running", "waiting"):
            with contextlib.suppress(OSError, ValueError):
                if upload.id.encode() in read_bounded(entry.path / CONFIG, _CONFIG_BYTES):
                    found.append(entry.folder.name)
    return found


def trash(site: Site, upload: Upload) -> None:
    """Moves an upload to the trash of the data folder, where a person finds it again.

    Raises:
        RunLockedError: a run or a job reads it. StorageError: it cannot be moved.
    """
    _refuse_users(site, upload)
    try:
        (site.data / TRASH).mkdir(mode=0o700, exist_ok=True)
        os.rename(upload.folder, site.data / TRASH / f"{upload.id}-{secrets.token_hex(3)}")
    except OSError as error:
        raise _no_room(site.data / TRASH, error) from None


def delete(site: Site, upload: Upload, name: str) -> None:
    """Deletes an upload for good.

    Args:
        name: what the person typed: what the upload is called.

    Raises:
        UsageError: another name. RunLockedError: a run or a job reads it. StorageError: it cannot be deleted.
    """
    if name.strip() != upload.shown:
        raise UsageError(f"名前が違います。{upload.shown} と入力してください。", f"type the name: {upload.shown}.")
    _refuse_users(site, upload)
    try:
        shutil.rmtree(upload.folder)
    except OSError as error:
        raise _no_room(upload.folder, error) from None


def _refuse_users(site: Site, upload: Upload) -> None:
    names = users(site, upload)
    if names:
        raise RunLockedError(
            f"{upload.shown} は学習 {'、'.join(names)} が使っています。終わってから削除してください。",
            f"{upload.shown} is used by {', '.join(names)}; delete it when that has ended.",
        )
    refuse_used(site, upload.shown, lambda about: about.get("file") == upload.id)
