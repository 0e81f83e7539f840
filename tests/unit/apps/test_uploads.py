"""What people upload is bounded and kept under names of ours, and nothing hostile or half stays behind."""

from __future__ import annotations

import json
import os
import stat
import zipfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest
from starlette.requests import ClientDisconnect

from ai_finetuning.apps.cli.data_table import check_workbook
from ai_finetuning.apps.web import uploads
from ai_finetuning.apps.web.site import Site
from ai_finetuning.apps.web.uploads import Upload
from ai_finetuning.config.run_folder import CONFIG
from ai_finetuning.errors import DataError, InputNotFoundError, RunLockedError, StorageError, ToolkitError, UsageError
from ai_finetuning.runs.phase import change_run
from ai_finetuning.runs.process import identity

CSV = "質問,回答\n首都は？,東京です。\n".encode("cp932")


@pytest.fixture(autouse=True)
def _japanese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIFT_LANG", "ja")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(runs=tmp_path / "outputs", roots=(tmp_path,), models=tmp_path / "models", data=tmp_path / "data")


def received(
    site: Site, name: str, parts: Sequence[bytes | Exception], length: int | None = None, **limits: int
) -> Upload:
    async def stream() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    async def run() -> Upload:
        return await uploads.receive(site, name, length, stream(), **limits)

    return anyio.run(run)


def left(site: Site) -> list[str]:
    return sorted(path.name for path in site.data.iterdir()) if site.data.exists() else []


def test_a_file_is_kept_under_our_name_for_its_owner_only(site: Site):
    made = received(site, "%E3%82%88%E3%81%8F%E3%81%82%E3%82%8B%E8%B3%AA%E5%95%8F.CSV", [CSV[:5], CSV[5:]])
    assert made.shown == "よくある質問.CSV"
    assert made.path == site.data / made.id / "data.csv"
    assert made.path.read_bytes() == CSV
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    assert uploads.find(site, made.id) == made == uploads.list_uploads(site)[0]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("..%2F..%2Fx.csv", "x.csv"),
        ("..%5C..%5Cx.csv", "x.csv"),
        ("%2Fetc%2Fcron.d%2Fx.csv", "x.csv"),
        ("a%00b%0A%1B%5B2Jc.csv", "a\\x00b\\n\\x1b[2Jc.csv"),
        ("%E2%80%AEgpj.csv", "\\u202egpj.csv"),
        ("%FF%FE.csv", "\ufffd\ufffd.csv"),
    ],
)
def test_a_name_from_outside_is_only_shown(site: Site, name: str, shown: str):
    made = received(site, name, [CSV])
    assert made.shown == shown
    assert left(site) == [made.id]
    assert not list(site.data.parent.rglob("x.csv"))


@pytest.mark.parametrize(
    "name", ["a.exe", "a.xlsm", "a.pkl", "a.csv.gz", "a", "..%2F..%2F", "", "a.csv%00.exe", ".htaccess"]
)
def test_other_kinds_are_refused_before_a_byte_is_read(site: Site, name: str):
    with pytest.raises(UsageError, match="読めません"):
        received(site, name, [AssertionError("the body was read")])
    assert left(site) == []


def test_size_is_counted_whatever_was_announced(site: Site):
    with pytest.raises(UsageError, match="超えています"):
        received(site, "a.csv", [AssertionError("the body was read")], length=101, most=100)
    for announced in (None, 10):  # not told, and a lie
        with pytest.raises(UsageError, match="超えています"):
            received(site, "a.csv", [b"x" * 60, b"x" * 60], length=announced, most=100)
    with pytest.raises(UsageError, match="空です"):
        received(site, "a.csv", [])
    with pytest.raises(StorageError, match="合わせて"):
        received(site, "a.csv", [b"x" * 60], quota=50)
    made = received(site, "a.csv", [b"x" * 60], quota=10_000)
    used = sum(path.stat().st_size for path in made.folder.iterdir())
    with pytest.raises(StorageError):
        received(site, "b.csv", [b"x" * 60], quota=used + 59)
    assert left(site) == [made.id]


@pytest.mark.parametrize("error", [ClientDisconnect(), RuntimeError("lost"), OSError(28, "No space left on device")])
def test_what_breaks_off_leaves_nothing(site: Site, error: Exception):
    with pytest.raises((type(error), StorageError)):
        received(site, "a.csv", [b"x" * (3 << 20), error])
    assert left(site) == []


def test_what_is_cancelled_leaves_nothing(site: Site):
    async def never() -> AsyncIterator[bytes]:
        yield b"x" * (2 << 20)
        await anyio.sleep(60)

    async def run() -> None:
        with anyio.move_on_after(0.2):
            await uploads.receive(site, "a.csv", None, never())

    anyio.run(run)
    assert left(site) == []


def test_half_files_of_a_server_that_is_gone_are_removed(site: Site):
    old, new = site.data / ".part-old", site.data / ".part-new"
    for part in (old, new):
        part.mkdir(parents=True)
    os.utime(old, (0, 0))
    made = received(site, "a.csv", [CSV])
    assert left(site) == [".part-new", made.id]


@pytest.mark.parametrize(
    "id", ["", "..", "../x", "u-1", "u-" + "a" * 12 + "/..", "U-AAAAAAAAAAAA", "x" * 65, "outputs", "embedded-none"]
)
def test_no_id_leads_out(site: Site, id: str):
    (site.data / "outputs").mkdir(parents=True)
    with pytest.raises(ToolkitError):
        uploads.find(site, id)


def test_a_link_in_the_place_of_an_upload_is_not_followed(site: Site, tmp_path: Path):
    made = received(site, "a.csv", [CSV])
    other = site.data / "u-000000000000"
    other.symlink_to(made.folder)
    with pytest.raises(InputNotFoundError):
        uploads.find(site, other.name)
    secret = tmp_path / "secret"
    secret.write_text("s")
    made.path.unlink()
    made.path.symlink_to(secret)
    with pytest.raises(InputNotFoundError):
        uploads.find(site, made.id)
    assert uploads.list_uploads(site) == []


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"shown": "a", "kind": "/../../x"}', '{"shown": "a", "kind": ".pkl"}', "[" * 9999]
)
def test_a_damaged_record_is_no_upload(site: Site, record: str):
    made = received(site, "a.csv", [CSV])
    (made.folder / uploads.RECORD).write_text(record)
    with pytest.raises(InputNotFoundError):
        uploads.find(site, made.id)


def test_columns_sheet_and_division_are_in_the_folder(site: Site):
    made = received(site, "a.csv", [CSV])
    uploads.change(made, columns={"instruction": "回答", "output": "質問"}, sheet="FAQ")
    now = uploads.find(site, made.id)
    assert now.columns == {"instruction": "回答", "output": "質問"}
    assert now.sheet == "FAQ"
    assert now.settings == ['data.columns={"instruction": "回答", "output": "質問"}', "data.sheet=FAQ"]
    assert now.table != made.table
    folder = uploads.divided_folder(now, 0.1)
    folder.mkdir()
    for name in (uploads.TRAIN, uploads.EVAL):
        (folder / name).write_text("{}\n")
    uploads.change(now, share=0.1)
    divided = uploads.find(site, made.id)
    assert (divided.path, divided.evaluated) == (folder / uploads.TRAIN, folder / uploads.EVAL)
    assert (divided.sheet, divided.file, divided.file_sheet) == (None, made.path, "FAQ")


def test_a_file_that_the_server_made_becomes_an_upload(site: Site, tmp_path: Path):
    file = tmp_path / "out.jsonl"
    file.write_text('{"質問": "a", "回答": "b"}\n', "utf-8")
    made = uploads.adopt(site, file, "直した.jsonl", columns={"instruction": "質問"})
    assert uploads.find(site, made.id).columns == {"instruction": "質問"}
    assert made.path.name == "data.jsonl"
    assert not file.exists()


def test_deleting_asks_for_the_name_and_spares_what_is_used(site: Site):
    made = received(site, "a.csv", [CSV])
    with pytest.raises(UsageError, match="名前が違います"):
        uploads.delete(site, made, "b.csv")
    run = site.runs / "busy"
    run.mkdir(parents=True)
    (run / CONFIG).write_text(f"data:\n  train: {made.path}\n")
    change_run(run, status="running", **identity())
    for remove in (lambda: uploads.delete(site, made, "a.csv"), lambda: uploads.trash(site, made)):
        with pytest.raises(RunLockedError, match="busy"):
            remove()
    (run / CONFIG).write_text("data:\n  train: other.csv\n")
    uploads.trash(site, made)
    [kept] = (site.data / uploads.TRASH).iterdir()
    assert (kept / "data.csv").read_bytes() == CSV
    again = received(site, "a.csv", [CSV])
    uploads.delete(site, again, " a.csv ")
    assert left(site) == [uploads.TRASH]


def test_data_that_ships_has_an_id(site: Site):
    shipped = uploads.find(site, "embedded-kotoha-qa")
    assert shipped.path.name == "train.jsonl"
    assert shipped.folder == site.data / "embedded-kotoha-qa"
    uploads.change(shipped, share=None)
    assert uploads.find(site, "embedded-kotoha-qa").shown == "kotoha-qa"


def test_a_workbook_that_says_it_is_a_bomb_is_refused(tmp_path: Path):
    bomb, many, none = tmp_path / "bomb.xlsx", tmp_path / "many.xlsx", tmp_path / "none.xlsx"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("xl/worksheets/sheet1.xml", b"0" * (64 << 20))
    with zipfile.ZipFile(many, "w") as file:
        for number in range(5001):
            file.writestr(str(number), b"")
    none.write_bytes(b"PK\x03\x04" + bytes(100))
    for path in (bomb, many, none):
        with pytest.raises(DataError, match="Excel"):
            check_workbook(path)
    check_workbook(tmp_path / "none.csv")


def test_the_record_says_what_it_was(site: Site):
    made = received(site, "a.csv", [CSV])
    record = json.loads((made.folder / uploads.RECORD).read_text("utf-8"))
    assert record["size"] == len(CSV)
    assert len(record["sha256"]) == 64


@pytest.mark.parametrize(
    ("name", "kind"), [("a" * 300 + ".csv", ".csv"), ("ご質問" * 80 + ".XLSX", ".xlsx"), ("社.内" * 90, None)]
)
def test_a_long_name_keeps_the_ending_by_which_it_is_read(name: str, kind: str | None):
    shown = uploads.shown_name(name)
    assert len(shown) == 200
    assert name.startswith(shown[:150])
    if kind:
        assert uploads.kind_of(shown) == kind
