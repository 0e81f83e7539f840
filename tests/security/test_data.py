"""Received data: bounded in what it becomes, and no file or address opened that a row names."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import openpyxl
import pyarrow
import pyarrow.parquet
import pytest

from ai_finetuning.data.files import read_rows
from ai_finetuning.errors import DataError
from tests.support.commands import environment
from tests.support.patience import patience

PAIRS = [{"質問": "首都は？", "回答": "東京です。"}]


def within_limits(path: Path) -> str:
    """What reading a file says, in a process that may take 2 GB and little time."""
    code = (
        "import resource, sys\nresource.setrlimit(resource.RLIMIT_AS, (2 * 2**30,) * 2)\n"
        "from ai_finetuning.data.files import read_rows\nfrom ai_finetuning.errors import ToolkitError\n"
        "try:\n    print(len(read_rows(sys.argv[1])[0]), 'rows')\nexcept ToolkitError as error:\n    print(error.en)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env=environment(OMP_NUM_THREADS="1", ARROW_DEFAULT_MEMORY_POOL="system"),
        capture_output=True,
        text=True,
        timeout=patience(30),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def gzip_bomb(path: Path) -> None:
    line = json.dumps({"text": "あ" * 1000}, ensure_ascii=False) + "\n"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for _ in range(100):
            file.write(line * 1000)


def parquet_bomb(path: Path) -> None:
    values = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2_000_000, pyarrow.int32()), ["あ" * 1000])
    pyarrow.parquet.write_table(pyarrow.table({"text": values}), path)


def sheet_with(path: Path, *, rows: str, strings: str = "") -> None:
    """A workbook of a sheet's own XML."""
    book = openpyxl.Workbook()
    book.active.append(["質問", "回答"])
    book.save(path)
    with zipfile.ZipFile(path) as whole:
        parts = {item.filename: whole.read(item) for item in whole.infolist()}
    name = next(key for key in parts if key.startswith("xl/worksheets/sheet"))
    parts[name] = parts[name].replace(b"</sheetData>", rows.encode() + b"</sheetData>")
    if strings:
        parts["xl/sharedStrings.xml"] = strings.encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in parts.items():
            archive.writestr(key, value)


def far_row(path: Path) -> None:
    sheet_with(path, rows='<row r="99999999"><c r="A99999999" t="inlineStr"><is><t>x</t></is></c></row>')


def long_string(path: Path) -> None:
    strings = '<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><si><t>' + "a" * 60_000_000
    sheet_with(path, rows="", strings=strings + "</t></si></sst>")


def entities(path: Path) -> None:
    strings = f'<!DOCTYPE sst [<!ENTITY a "{"x" * 100_000}">]><sst>' + "&a;" * 10_000 + "</sst>"
    sheet_with(path, rows="", strings=strings)


def damaged_before_entities(path: Path) -> None:
    """A part that nobody reads is damaged, and stands before the one that declares entities."""
    entities(path)
    with zipfile.ZipFile(path) as whole:
        parts = {item.filename: whole.read(item) for item in whole.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("docProps/thumbnail.jpeg", b"a picture" * 50, zipfile.ZIP_STORED)
        for key, value in parts.items():
            archive.writestr(key, value)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"a picture")] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "make", "reason"),
    [
        ("a.jsonl.gz", gzip_bomb, "200 times its size"),
        ("a.parquet", parquet_bomb, "200 times its size"),
        ("far.xlsx", far_row, "1,048,576 rows"),
        ("long.xlsx", long_string, "200 times its size"),
        ("entities.xlsx", entities, "XML entities"),
        ("damaged.xlsx", damaged_before_entities, "not valid Excel"),
    ],
)
def test_a_small_file_that_becomes_a_huge_one_is_refused(tmp_path: Path, name: str, make, reason: str):
    path = tmp_path / name
    make(path)
    assert path.stat().st_size < 2**20
    assert reason in within_limits(path)


def test_honest_compression_is_read(tmp_path: Path):
    """Text that compresses a hundredfold, as tables of repeated phrases do."""
    line = json.dumps(PAIRS[0], ensure_ascii=False) + "\n"
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((line * 20_000).encode()))
    assert len(read_rows(tmp_path / "a.jsonl.gz")[0]) == 20_000


def image_dataset(folder: Path, target: str) -> None:
    """A saved data set whose column of pictures names any file or address, which `datasets` itself would not save."""
    from datasets import Dataset

    Dataset.from_list([{"text": "文", "picture": {"path": target, "bytes": None}}]).save_to_disk(folder)
    (data,) = folder.glob("*.arrow")
    table = pyarrow.ipc.open_stream(data.read_bytes()).read_all()
    features = {"text": {"dtype": "string", "_type": "Value"}, "picture": {"_type": "Image"}}
    struct = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"text": table["text"], "picture": pyarrow.array([{"bytes": None, "path": target}], struct)}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    with pyarrow.OSFile(str(data), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_bytes()) | {"features": features}), encoding="utf-8")


@pytest.mark.parametrize("target", ["/etc/hostname", "http://127.0.0.1:9/a.png", "zip://x::http://127.0.0.1:9/a.zip"])
def test_a_picture_that_a_row_names_is_not_opened(tmp_path: Path, target: str):
    image_dataset(tmp_path / "set", target)
    rows, _ = read_rows(tmp_path / "set")
    assert rows[0].values["picture"]["path"] == target  # as it is written, never as what lies there


@pytest.mark.parametrize("name", ["../other/data.arrow", "/etc/passwd", "http://127.0.0.1:9/a", "a\\b"])
def test_files_of_a_saved_dataset_lie_in_its_folder(tmp_path: Path, name: str):
    from datasets import Dataset

    Dataset.from_list(PAIRS).save_to_disk(tmp_path / "set")
    state = tmp_path / "set" / "state.json"
    values = json.loads(state.read_bytes())
    values["_data_files"] = [{"filename": name}]
    state.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataError, match="not a file of its folder"):
        read_rows(tmp_path / "set")
    state.write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        read_rows(tmp_path / "set")
