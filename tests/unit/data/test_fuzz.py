"""Damaged and odd files of every kind, made with fixed seeds: a clear refusal in both languages, never a traceback."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest
from tests.support.fuzz import damaged, value
from tests.support.fuzz_readers import ROW_KEYS, ROWS, TALKS

from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import ToolkitError


def seed_files(folder: Path) -> dict[str, bytes]:
    """A good file of each kind."""
    jsonl = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS + TALKS)
    table = "質問,回答\r\n" + "".join(f'{row["質問"]},"{row["回答"]}"\r\n' for row in ROWS)
    files = {
        ".jsonl": jsonl.encode(),
        ".json": json.dumps(ROWS + TALKS, ensure_ascii=False, indent=1).encode(),
        ".csv": table.encode("cp932"),
        ".tsv": table.replace(",", "\t").encode("utf-16"),
        ".txt": "吾輩は猫である。\n\n名前はまだ無い。\n".encode("euc_jp"),
    }
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "a.parquet")
    with pyarrow.OSFile(str(folder / "a.arrow"), "wb") as sink:
        with pyarrow.ipc.new_file(sink, pyarrow.Table.from_pylist(ROWS).schema) as writer:
            writer.write_table(pyarrow.Table.from_pylist(ROWS))
    book = openpyxl.Workbook()
    for row in [list(ROWS[0]), *(list(row.values()) for row in ROWS)]:
        book.active.append(row)
    book.save(folder / "a.xlsx")
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("faq.csv", files[".csv"])
    return files | {kind: (folder / f"a{kind}").read_bytes() for kind in (".parquet", ".arrow", ".xlsx", ".zip")}


def read(path: Path) -> None:
    """Reads a file as training does; any refusal is one of the toolkit's, for data, in both languages."""
    for skip in (False, True):
        try:
            load_samples(path, skip_bad_rows=skip)
        except ToolkitError as error:
            problem = (type(error).exit_code, bool(error.ja), bool(error.en))
        else:
            continue
        assert problem == (65, True, True), path


def damage_every_kind(folder: Path, seed: int, times: int) -> None:
    rng = random.Random(seed)
    for kind, raw in seed_files(folder).items():
        path = folder / f"damaged{kind}"
        for _ in range(times):
            path.write_bytes(damaged(raw, rng))
            read(path)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_read_or_refused(tmp_path: Path, seed: int):
    damage_every_kind(tmp_path, seed, 12)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_many_damaged_files_are_read_or_refused(tmp_path: Path, seed: int):
    damage_every_kind(tmp_path, seed, 60)


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_any_values_are_read_or_refused(tmp_path: Path, seed: int):
    """Every key that the reader knows, with values of every type: lists, objects, numbers and halves of characters."""
    rng = random.Random(seed)
    path = tmp_path / "a.jsonl"
    for _ in range(150):
        rows = [
            {rng.choice(ROW_KEYS): value(rng, names=ROW_KEYS) for _ in range(rng.randint(1, 4))}
            for _ in range(rng.randint(1, 3))
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        read(path)
