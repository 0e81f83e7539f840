"""Ids of runs, their names, and the trash."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.errors import ConfigError, InputNotFoundError, RunLockedError
from ai_finetuning.runs import listing
from ai_finetuning.runs.listing import find_id, list_runs, list_trash, rename, restore, trash
from ai_finetuning.runs.process import identity
from ai_finetuning.system import files


def run(folder: Path, status: str = "completed", **values: Any) -> Path:
    folder.mkdir(parents=True)
    content = {"status": status, "fingerprint": {"model": "m", "method": "lora"}} | values
    (folder / "run.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def ids(*roots: Path) -> dict[str, Path]:
    return {entry.id: entry.path for entry in list_runs(*roots)}


def test_every_id_fits_an_address_and_names_one_run(tmp_path: Path):
    names = ["faq", "FAQ v2", "長い実行", "x" * 90, "a.b", "a-b"]
    for name in names:
        run(tmp_path / "outputs" / name)
    found = ids(tmp_path)
    assert len(found) == len(names)
    assert all(re.fullmatch(r"[a-z0-9-]{1,64}", id) for id in found)
    assert found["faq"] == tmp_path / "outputs" / "faq"
    for id, path in found.items():
        assert find_id(id, [tmp_path]).path == path
        assert find_id(id, [tmp_path / "outputs"]).path == path  # wherever it is looked for
    for id in ("../faq", "/", "", "outputs/faq", "nothing"):
        with pytest.raises(InputNotFoundError, match="faq"):
            find_id(id, [tmp_path])


def test_a_name_that_two_runs_have_names_neither(tmp_path: Path):
    """An id that went on meaning one of them could mean the other by the next command."""
    run(tmp_path / "outputs" / "faq")
    assert list(ids(tmp_path)) == ["faq"]
    run(tmp_path / "faq")
    found = ids(tmp_path)
    assert len(found) == 2
    assert "faq" not in found
    assert set(found.values()) == {tmp_path / "faq", tmp_path / "outputs" / "faq"}
    assert ids(tmp_path, tmp_path / "outputs") == found  # roots that overlap


def test_links_out_of_a_root_are_no_runs_of_it(tmp_path: Path):
    run(tmp_path / "secret" / "other")
    root = tmp_path / "root"
    run(root / "mine")
    (root / "linked").symlink_to(tmp_path / "secret" / "other")
    assert list(ids(root)) == ["mine"]
    (root / "outputs").symlink_to(tmp_path / "secret")  # a user's larger disk
    assert set(ids(root)) == {"mine", "other"}


def test_renaming(tmp_path: Path):
    folder = run(tmp_path / "outputs" / "faq")
    moved = rename(folder, "よくある質問")
    assert moved == tmp_path / "outputs" / "よくある質問"
    assert (moved / "run.json").is_file()
    run(tmp_path / "outputs" / "taken")
    for name in ("taken", "a/b", "..", ".hidden", "", "x" * 101, "a\nb", "c:", "\\", "end."):
        with pytest.raises(ConfigError):
            rename(moved, name)
    assert moved.is_dir()


def test_what_is_in_the_trash_is_listed_and_comes_back(tmp_path: Path):
    folder = run(tmp_path / "outputs" / "問い合わせ.v2")
    trash(folder)
    (found,) = list_trash(tmp_path)
    assert found.name == "問い合わせ.v2"
    assert re.fullmatch(r"[a-z0-9-]{1,64}", found.id)
    assert list_trash(tmp_path / "outputs")[0].id == found.id
    run(folder)
    with pytest.raises(ConfigError, match="exists already"):
        restore(found.path)
    trash(folder)
    newest = list_trash(tmp_path)[0]
    assert restore(newest.path) == folder
    assert ids(tmp_path).values()
    assert [one.path for one in list_trash(tmp_path)] == [found.path]
    with pytest.raises(ConfigError):
        restore(folder)


def test_the_trash_keeps_everything(tmp_path: Path):
    for _ in range(2):
        folder = run(tmp_path / "outputs" / "faq")
        (folder / "adapter_model.safetensors").write_bytes(b"weights")
        gone = trash(folder)
        assert not folder.exists()
        assert (gone / "adapter_model.safetensors").read_bytes() == b"weights"
    assert list_runs(tmp_path) == []
    assert len(list((tmp_path / "outputs" / ".trash").iterdir())) == 2


def test_a_run_at_work_stays_where_it_is(tmp_path: Path):
    from filelock import FileLock

    working = run(tmp_path / "a", "running", **identity())
    waiting = run(tmp_path / "b", child=identity() | {"phase": {"name": "waiting", "since": 0}})
    locked = run(tmp_path / "c")
    with FileLock(str(locked / ".lock")):
        for folder in (working, waiting, locked):
            with pytest.raises(RunLockedError, match="stop it first"):
                trash(folder)
            with pytest.raises(RunLockedError):
                rename(folder, "other")
            assert folder.is_dir()
    trash(locked)


def test_a_run_that_may_be_at_work_on_another_pc_is_moved_where_that_is_said(tmp_path: Path):
    begun = run(tmp_path / "a", "running", **identity() | {"host": "elsewhere"})
    launched = run(tmp_path / "b", child=identity() | {"host": "elsewhere"}, status=None)
    ended = run(tmp_path / "c", **identity() | {"host": "elsewhere"})
    for folder in (begun, launched):
        with pytest.raises(RunLockedError, match="began on another PC"):
            trash(folder)
        with pytest.raises(RunLockedError, match="--force"):
            rename(folder, "other")
        assert folder.is_dir()
    assert rename(begun, "other", force=True).is_dir()
    assert trash(launched, force=True).is_dir()
    assert trash(ended).is_dir()


def test_what_a_listing_leaves_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged):
    for name in ("a", "b", "c"):
        run(tmp_path / name)
    assert len(list_runs(tmp_path)) == 3
    assert logged() == ""
    monkeypatch.setattr(listing, "_BYTES", 2 * (tmp_path / "a" / "run.json").stat().st_size)
    assert len(list_runs(tmp_path)) == 2
    assert "1 runs are not read" in logged()
    monkeypatch.setattr(files, "_MOST_ENTRIES", 2)
    assert len(list_runs(tmp_path)) == 2
    assert "holds more than 2 files and folders" in logged()


def test_runs_in_a_runs_folder_are_not_moved_with_it(tmp_path: Path):
    outer = run(tmp_path / "outputs")
    run(outer / "faq", "running", **identity())
    with pytest.raises(ConfigError, match="faq"):
        trash(outer)
    with pytest.raises(ConfigError, match="faq"):
        rename(outer, "old")
