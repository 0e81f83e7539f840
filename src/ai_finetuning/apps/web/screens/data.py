"""データ: what a user uploads, read and checked."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ....config.data import DataConfig
from ....data.paged import PAGE, Paged
from ....embedded import PREFIX
from ....errors import ConfigError, DataError, ToolkitError, UsageError
from .. import children, uploads
from ..api import answer, blocking, body, text
from ..site import site_of
from ..uploads import Upload
from . import models

# Rows whose tokens are made at once: the model's tokenizer takes seconds to load, a row takes none.
_BLOCK = 25
_REMEMBERED = 40  # blocks
_READING, _REPAIRING = 330.0, 600.0
_FIXES = ("safe", "all")
_TEXT = 2_000  # characters of a text that a page of rows shows


async def _upload(request: Request) -> Response:
    """A file as the body, its name in the header `x-aift-name`."""
    length = request.headers.get("content-length", "")
    header = request.headers.get("x-aift-name", "")
    announced = int(length) if length.isdecimal() else None
    upload = await uploads.receive(site_of(request), header, announced, request.stream())
    return answer(_told(upload))


def _told(upload: Upload) -> dict[str, Any]:
    return {
        "id": upload.id,
        "shown": upload.shown,
        "size": upload.size,
        "made": upload.made,
        "columns": upload.columns,
        "sheet": upload.file_sheet,
        "share": upload.share,
        "shipped": not upload.id.startswith("u-"),
    }


async def _list(request: Request) -> Response:
    site = site_of(request)
    found = await blocking(uploads.list_uploads, site)
    limits = {"most": uploads.MOST, "kinds": uploads.KINDS, "folder": str(site.data)}
    return answer({"uploads": [await blocking(_listed, upload) for upload in found], **limits})


def _listed(upload: Upload) -> dict[str, Any]:
    table = _opened(upload)
    return _told(upload) | {"rows": None if table is None else len(table)}


async def _found(request: Request) -> Upload:
    return await blocking(uploads.find, site_of(request), request.path_params["id"])


def _opened(upload: Upload) -> Paged | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return Paged(upload.table)
    return None


async def _show(request: Request) -> Response:
    """An upload and, where it was read, what was found."""
    upload = await _found(request)
    table = await blocking(_opened, upload)
    told = {"table": None if table is None else _named(table.summary, upload), "path": _typed(upload)}
    divided = None
    if upload.evaluated is not None:
        sides = {"train": upload.path, "eval": upload.evaluated}
        divided = {side: await blocking(uploads.count_rows, path) for side, path in sides.items()}
    return answer(_told(upload) | told | {"divided": divided, "settings": upload.settings})


def _typed(upload: Upload) -> str:
    """What a command names an upload by."""
    own = upload.id.startswith("u-")
    return str(upload.file) if own else PREFIX + upload.shown


def _named(value: Any, upload: Upload) -> Any:
    """What was read, with the file's name as people know it in the place of ours."""
    if isinstance(value, str):
        return value.replace(str(upload.file), upload.shown)
    if isinstance(value, dict):
        return {key: _named(item, upload) for key, item in value.items()}
    return [_named(item, upload) for item in value] if isinstance(value, list) else value


async def _read(request: Request) -> Response:
    """Reads an upload, examines it and keeps the result; with columns or a sheet in the body, by those.

    A file that was sent and holds no data that can be read is not kept. What the server has made itself stays whatever
    happens, and so does everything where the disk, the memory or the time is what failed.
    """
    upload, asked = await _found(request), await body(request)
    changed = {key: _chosen(asked[key], key) for key in ("columns", "sheet") if key in asked}
    if changed:
        file_sheet = changed.get("sheet", upload.file_sheet)
        wanted = _with(upload, changed.get("columns", None if "sheet" in changed else upload.columns), file_sheet)
        await _make_table(request, wanted)
        await blocking(uploads.change, upload, columns=wanted.columns, sheet=wanted.file_sheet, share=None)
        return answer({})
    try:
        await _make_table(request, upload)
    except DataError:
        if upload.received and not list(upload.folder.glob("table-*")):
            await blocking(shutil.rmtree, upload.folder, True)
        raise
    return answer({})


def _with(upload: Upload, columns: dict[str, str] | None, sheet: str | None) -> Upload:
    return replace(upload, columns=columns, sheet=sheet, file_sheet=sheet)


def _chosen(value: Any, key: str) -> Any:
    """Columns or a sheet as a request names them.

    Raises:
        UsageError: they are none.
    """
    if value is None:
        return None
    if key == "sheet" and isinstance(value, str):
        return value
    texts = isinstance(value, dict) and all(isinstance(item, str) for pair in value.items() for item in pair)
    if key == "columns" and texts and len(value) < 20:
        return value
    raise UsageError(f"{key} の形が正しくありません。", f"{key} has the wrong form.")


async def _make_table(request: Request, upload: Upload) -> None:
    """Has a child read an upload; what is there already is kept."""
    if await blocking(_opened, upload) is not None:
        return
    part = upload.folder / f".part-{secrets.token_hex(6)}"
    await blocking(upload.folder.mkdir, 0o700, True, True)
    command = ["data", "table", str(upload.file), "--out", str(part), *upload.settings, "--json", "-"]
    try:
        summary = await _child(request, command, upload, _READING)
        if not summary["rows"]:
            raise DataError(
                "\n".join([f"{upload.shown} に使える行がありません。", *(ja for ja, _ in summary["unreadable"])]),
                "\n".join([f"{upload.shown} has no row that can be used.", *(en for _, en in summary["unreadable"])]),
            )
        with contextlib.suppress(OSError):  # another tab was first
            os.rename(part, upload.table)
    finally:
        shutil.rmtree(part, ignore_errors=True)


async def _child(request: Request, command: list[str], upload: Upload, seconds: float) -> Any:
    """What a command answers; its refusals name the file as people know it. With findings the doctor ends as for an error."""
    try:
        found = await children.run(request, command, seconds=seconds, also=(DataError.exit_code,))
        return _named(found, upload)
    except ToolkitError as error:
        raise type(error)(_named(error.ja, upload), _named(error.en, upload)) from None


async def _table(request: Request) -> tuple[Upload, Paged]:
    upload = await _found(request)
    table = await blocking(_opened, upload)
    if table is None:
        raise UsageError("このデータはまだ読んでいません。", "this data has not been read yet.")
    return upload, table


async def _rows(request: Request) -> Response:
    """A page of rows: `?page=0&filter=KEY`."""
    _, table = await _table(request)
    query = request.query_params
    page, key = query.get("page", "0"), query.get("filter") or None
    if not page.isdecimal() or len(page) > 9:
        raise UsageError("page は 0 からの整数です。", "page is a number from 0.")
    try:
        total = table.matching(key)
        first = min(int(page), max(0, total - 1) // PAGE) * PAGE
        rows = await blocking(table.rows, first, PAGE, key)
    except KeyError:
        raise UsageError("その絞り込みはありません。", "there is no such filter.") from None
    return answer({"total": total, "first": first, "rows": [_row(row) for row in rows]})


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a page shows it: long texts cut."""
    texts = [[role, said[:_TEXT], len(said) > _TEXT, spans] for role, said, spans in row["texts"]]
    return {key: row[key] for key in ("number", "line", "mark", "found", "refused")} | {"texts": texts}


async def _tokens(request: Request) -> Response:
    """One row as the model of `model` gets it: `{"row": number, "model": id}`."""
    upload, table = await _table(request)
    asked = await body(request)
    number, id = asked.get("row"), text(asked, "model", models.DEFAULT)
    if not isinstance(number, int) or not 1 <= number <= len(table):
        raise UsageError("row は行の番号です。", "row is the number of a row.")
    model = await blocking(models.find, site_of(request), id)
    first = (number - 1) // _BLOCK * _BLOCK
    kept = site_of(request).token_rows
    # A file that has grown may be as long as before: an answer that was corrected once more took a row's place.
    key = (upload.id, upload.reading, upload.grown, model, first)
    if key not in kept:
        kept[key] = await _block(request, upload, table, model, first)
        for old in list(kept)[:-_REMEMBERED]:
            del kept[old]
    parts = kept[key].get(number, [])
    [row] = await blocking(table.rows, number - 1, 1)
    # The command counts the rows that can be used.
    unused = sum(1 for key in ("empty", "unreadable") for other in table.numbers(key) if other < number)
    told = {"number": number, "usable": number - unused, "refused": row["refused"], "line": row["line"]}
    return answer(told | {"rows": parts})


async def _block(request: Request, upload: Upload, table: Paged, model: str, first: int) -> dict[int, list[Any]]:
    """The tokens of some rows, by number, as `aift data show` gives them for a file of these rows alone: a row's tokens
    depend on no other row.
    """
    rows = await blocking(table.rows, first, _BLOCK)
    file = upload.folder / f".rows-{secrets.token_hex(6)}.jsonl"
    columns = [setting for setting in upload.settings if setting.startswith("data.columns")]
    try:
        lines = "".join(json.dumps(row["values"]) + "\n" for row in rows)
        await blocking(file.write_text, lines, "ascii")
        length = DataConfig().max_length
        options = ["--model", model, "--row", "all", "--max-length", str(length), "--json", "-"]
        try:
            shown = await children.run(request, ["data", "show", str(file), *options, *columns])
        except DataError:  # of these rows none can be used; each says so itself
            return {}
    finally:
        file.unlink(missing_ok=True)
    found: dict[int, list[Any]] = {}
    for item in shown["rows"]:
        line = int(item["source"].rpartition(":")[2])
        found.setdefault(rows[line - 1]["number"], []).append(item)
    return found


async def _repair(request: Request) -> Response:
    """A repaired copy as another upload: `{"fix": "safe"|"all", "mask": bool}`; the doctor's own repair."""
    upload, asked = await _found(request), await body(request)
    fix, mask = asked.get("fix"), asked.get("mask") is True
    if fix not in _FIXES:
        raise UsageError("fix は safe か all です。", "fix is safe or all.")
    folder = upload.folder / f".part-{secrets.token_hex(6)}"
    await blocking(folder.mkdir, 0o700, True)
    try:
        out = folder / "repaired.jsonl"
        command = ["data", "doctor", str(upload.file), "--fix", fix, *(["--mask"] if mask else []), "--out", str(out)]
        report = await _child(request, [*command, *upload.settings, "--json", "-"], upload, _REPAIRING)
        if not out.stat().st_size:
            raise DataError("残る行がありません。", "no row would be left.")
        done = report["repaired"]
        if not done["changed"] and not done["dropped"]:  # a copy would be the same data once more
            return answer({"id": None, "repaired": done})
        columns = upload.columns
        shown = f"{Path(upload.shown).stem}_repaired.jsonl"
        made = await blocking(lambda: uploads.adopt(site_of(request), out, shown, columns=columns))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return answer(_told(made) | {"repaired": done})


async def _divide(request: Request) -> Response:
    """Divides an upload into training and evaluation data: `{"share": 0.1}`; null takes it back."""
    upload, asked = await _found(request), await body(request)
    share = asked.get("share")
    if share is not None and (not isinstance(share, float) or not 0.01 <= share <= 0.5):
        raise UsageError("share は 0.01 から 0.5 です。", "share is a number from 0.01 to 0.5.")
    if share is not None:
        out = uploads.divided_folder(upload, share)
        command = ["data", "split", str(upload.file), "--out", str(out), "--share", str(share), "--overwrite"]
        await _child(request, [*command, *upload.settings, "--json", "-"], upload, _READING)
    await blocking(uploads.change, upload, share=share)
    return answer(_told(await _found(request)))


async def _trash(request: Request) -> Response:
    await blocking(uploads.trash, site_of(request), await _own(request))
    return answer({})


async def _delete(request: Request) -> Response:
    upload = await _own(request)
    await blocking(uploads.delete, site_of(request), upload, text(await body(request), "name"))
    return answer({})


async def _own(request: Request) -> Upload:
    """An upload, not what ships with the toolkit.

    Raises:
        ConfigError: that.
    """
    upload = await _found(request)
    if not upload.id.startswith("u-"):
        raise ConfigError("同梱のデータは削除できません。", "data that ships with the toolkit cannot be deleted.")
    return upload


ROUTES = [
    Route("/api/data", _list),
    Route("/api/data/upload", _upload, methods=["POST"]),
    Route("/api/data/{id}", _show),
    Route("/api/data/{id}/rows", _rows),
    Route("/api/data/{id}/read", _read, methods=["POST"]),
    Route("/api/data/{id}/tokens", _tokens, methods=["POST"]),
    Route("/api/data/{id}/repair", _repair, methods=["POST"]),
    Route("/api/data/{id}/split", _divide, methods=["POST"]),
    Route("/api/data/{id}/trash", _trash, methods=["POST"]),
    Route("/api/data/{id}/delete", _delete, methods=["POST"]),
]
