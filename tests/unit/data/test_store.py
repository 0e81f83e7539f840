"""The store of tokens: the same rows as from memory, whatever the file; interrupted, damaged, used by a run."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.support.models import SENTENCES, build_tokenizer

from ai_finetuning import DataConfig
from ai_finetuning.apps.cli.main import run
from ai_finetuning.config.mixture import Entry, Sources
from ai_finetuning.data import compression, files
from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.encoding import decode
from ai_finetuning.data.example import Example
from ai_finetuning.data.examples import Joined, chosen, digest_of, largest_id, learnt_of, lengths_of
from ai_finetuning.data.files import matching, open_data, read_rows
from ai_finetuning.data.pieces import Account, PieceMaker, Reading
from ai_finetuning.data.prepare import SPLITS, hold_out, load_examples, prepare, shared_rows
from ai_finetuning.data.prepared import open_prepared, prepared_folder
from ai_finetuning.data.rows import Content
from ai_finetuning.data.store import preparing, writer
from ai_finetuning.data.store.arrays import BLOCK, ArrayEntry
from ai_finetuning.data.store.documents import documents_of, joined, parted
from ai_finetuning.data.store.folder import cached_store, prepare_folder
from ai_finetuning.data.store.mapped import file_of, open_store, read_manifest, write_manifest
from ai_finetuning.data.store.plain import from_plain, to_plain
from ai_finetuning.data.store.pool import Pool
from ai_finetuning.data.store.preparing import Preparation, lines_of, prepare_store, sources_of
from ai_finetuning.data.store.survey import survey
from ai_finetuning.data.store.wire import receive_answer, send_batch, serve
from ai_finetuning.errors import ConfigError, DataError, InputNotFoundError, RunLockedError, UsageError
from ai_finetuning.execution.tokenizing import encoder_for
from ai_finetuning.labels import IGNORED

TALKS = [
    {"instruction": f"第{number}の町の名物は？", "output": f"{SENTENCES[number % len(SENTENCES)]}です。", "memo": "x"}
    for number in range(40)
]
TEXTS = [{"text": f"{number}。" + SENTENCES[number % len(SENTENCES)] * (1 + number % 3)} for number in range(40)]


def jsonl(rows: Iterable[Any]) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)


def csv_of(rows: list[dict[str, str]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([list(rows[0]), *(list(row.values()) for row in rows)])
    return text.getvalue()


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    raw = text.encode(encoding)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), str(path), row_group_size=7)
    return path


def zipped(path: Path, text: str) -> Path:
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.jsonl", text)
    return path


def zstd(path: Path, text: str) -> Path:
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.CompressedOutputStream(file, "zstd") as stream:
        stream.write(text.encode())
    return path


def arrow(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow

    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return path


def packed(path: Path, text: str) -> Path:
    path.write_bytes({".bz2": bz2, ".xz": lzma}[path.suffix].compress(text.encode()))
    return path


SOURCES: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "jsonl": (lambda folder: write(folder / "a.jsonl", jsonl(TALKS)), {}),
    "gz": (lambda folder: write(folder / "a.jsonl.gz", jsonl(TALKS)), {}),
    "zst": (lambda folder: zstd(folder / "a.jsonl.zst", jsonl(TALKS)), {}),
    "bz2": (lambda folder: packed(folder / "a.jsonl.bz2", jsonl(TALKS)), {}),
    "xz": (lambda folder: packed(folder / "a.csv.xz", csv_of(TALKS)), {}),
    "tsv": (lambda folder: write(folder / "a.tsv", csv_of(TALKS).replace(",", "\t")), {}),
    "arrow": (lambda folder: arrow(folder / "a.arrow", TALKS), {}),
    "zip": (lambda folder: zipped(folder / "a.zip", jsonl(TALKS)), {}),
    "texts split": (lambda folder: write(folder / "a.jsonl", jsonl(TEXTS)), {"on_long": "split", "max_length": 16}),
    "texts cut": (lambda folder: write(folder / "a.jsonl", jsonl(TEXTS)), {"max_length": 100}),
    "csv cp932": (lambda folder: write(folder / "a.csv", csv_of(TALKS), "cp932"), {}),
    "csv jis": (lambda folder: write(folder / "a.csv", csv_of(TALKS), "iso2022_jp"), {}),
    "csv utf-16": (lambda folder: write(folder / "a.csv", csv_of(TALKS), "utf-16"), {}),
    "json": (lambda folder: write(folder / "a.json", json.dumps(TALKS)), {}),
    "json as jsonl": (lambda folder: write(folder / "a.jsonl", json.dumps(TALKS, indent=1)), {}),
    "text euc": (lambda folder: write(folder / "a.txt", "\n\n".join(SENTENCES * 2), "euc_jp"), {}),
    "text lines": (lambda folder: write(folder / "a.txt", "\r\n".join(SENTENCES * 2)), {}),
    "parquet": (lambda folder: parquet(folder / "a.parquet", TALKS), {}),
    "first rows": (lambda folder: write(folder / "a.jsonl", jsonl(TALKS)), {"max_samples": 7}),
    "a system text": (lambda folder: write(folder / "a.jsonl", jsonl(TALKS)), {"system_prompt": "短く。"}),
    "other columns": (
        lambda folder: write(
            folder / "a.jsonl", jsonl({"本": row["instruction"], "末": row["output"]} for row in TALKS)
        ),
        {"columns": {"instruction": "本", "output": "末"}},
    ),
    "bad rows": (
        lambda folder: write(
            folder / "a.jsonl",
            jsonl(
                [*TALKS[:9], "{broken", {"instruction": "問", "output": ""}, {"output": "答だけ"}, *TALKS[9:], "[1]"]
            ),
        ),
        {"skip_bad_rows": True},
    ),
    "rows without a format first": (
        lambda folder: write(folder / "a.jsonl", jsonl([{"memo": "なし"}] * 9 + TALKS)),
        {"skip_bad_rows": True},
    ),
    "too many cells": (
        lambda folder: write(folder / "a.csv", csv_of(TALKS) + "問,答,x,余り\r\n"),
        {"skip_bad_rows": True},
    ),
    "doubtful rows": (
        lambda folder: write(folder / "a.jsonl", jsonl([*TALKS[:20], *[{"text": "鮗鮖鮴鮠鮨鮭鮪鮫鯀鯊"}] * 4, *TEXTS])),
        {"skip_bad_rows": True},
    ),
}


def both(path: Path, folder: Path, **settings: Any) -> tuple[Any, Any]:
    """(what memory gives, what the store gives), each (examples, report, lines) or the refusal."""
    tokenizer, config = build_tokenizer(), DataConfig(cache=False, **settings)
    folder.mkdir()
    obtained: list[Any] = []
    for load in (
        lambda: load_examples(str(path), tokenizer, config),
        lambda: stored(Preparation((str(path),), config, tokenizer, sources_of([str(path)])), folder),
    ):
        try:
            obtained.append(load())
        except (ConfigError, DataError) as error:
            obtained.append((str(error), error.en))
    return obtained[0], obtained[1]


def stored(asked: Preparation, folder: Path, **options: Any) -> tuple[Any, Any, list[str]]:
    prepare_store(asked, folder, **options)
    examples, manifest = open_store(folder)
    return examples, manifest.report, lines_of(manifest, asked.config.max_samples)


def same(one: Any, other: Any) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.input_ids, b.input_ids)
        assert np.array_equal(a.labels, b.labels)
        assert (a.input_ids.dtype, a.labels.dtype) == (b.input_ids.dtype, b.labels.dtype)
        assert (a.characters, a.source, a.question) == (b.characters, b.source, b.question)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows at a time, so that small files have many batches."""
    monkeypatch.setattr(files, "_TOGETHER", 5)


@pytest.mark.parametrize("kind", SOURCES)
def test_a_store_gives_the_rows_the_report_and_the_lines_that_memory_gives(few, tmp_path: Path, kind: str):
    make, settings = SOURCES[kind]
    one, other = both(make(tmp_path), tmp_path / "store", **settings)
    assert len(one) == 3, one
    same(one[0], other[0])
    assert one[1] == other[1]
    assert one[2] == other[2]
    assert digest_of(one[0]) == digest_of(other[0])
    assert list(lengths_of(one[0])) == list(lengths_of(other[0]))
    assert list(learnt_of(one[0])) == list(learnt_of(other[0]))
    assert largest_id(one[0]) == largest_id(other[0])


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (jsonl([*TALKS, "{broken", {"instruction": "問", "output": ""}, {"instruction": "問", "output": "\x00"}]), {}),
        (jsonl([{"memo": "なし", "note": "x"}] * 9), {}),
        (jsonl(TALKS), {"columns": {"instruction": "本", "output": "末"}}),
        (jsonl(TALKS), {"max_length": 8}),
        ("", {}),
        (jsonl([*TALKS[:20], *[{"text": "鮗鮖鮴鮠鮨鮭鮪鮫鯀鯊"}] * 4]), {}),
    ],
    ids=["bad rows", "no format", "columns that are not there", "all cut", "empty", "mojibake"],
)
def test_a_store_refuses_what_memory_refuses_in_the_same_words(
    few, tmp_path: Path, text: str, settings: dict[str, Any]
):
    one, other = both(write(tmp_path / "a.jsonl", text), tmp_path / "store", **settings)
    assert len(one) == 2
    assert one == other


def test_a_folder_is_read_as_one_and_a_pattern_as_its_files(few, tmp_path: Path):
    for name, rows in (("b.jsonl", TALKS[:9]), ("a.csv", None), ("test.jsonl", TALKS[9:])):
        text = jsonl(rows) if rows is not None else csv_of(TALKS[9:])
        write(tmp_path / "in" / name, text) if (tmp_path / "in").mkdir(exist_ok=True) is None else None
    one, other = both(tmp_path / "in", tmp_path / "store")
    same(one[0], other[0])
    assert one[2] == other[2]
    assert matching(str(tmp_path / "in" / "*.jsonl")) == [
        str(tmp_path / "in" / name) for name in ("b.jsonl", "test.jsonl")
    ]
    with pytest.raises(InputNotFoundError):
        matching(str(tmp_path / "in" / "*.parquet"))


@pytest.mark.parametrize("kind", ["jsonl", "gz", "csv cp932", "text euc", "text lines", "parquet"])
def test_large_files_are_never_in_memory_whole(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    path = SOURCES[kind][0](tmp_path)

    def refuse(self: Content) -> bytes:
        raise AssertionError("the whole file was read")

    monkeypatch.setattr(Content, "raw", property(refuse))
    assert len(read_rows(path)[0]) >= 8


def asked_for(path: Path, **settings: Any) -> Preparation:
    return Preparation((str(path),), DataConfig(**settings), build_tokenizer(), sources_of([str(path)]))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("kind", ["jsonl", "csv cp932", "bad rows", "rows without a format first"])
def test_an_interrupted_preparation_goes_on(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    make, settings = SOURCES[kind]
    asked = asked_for(make(tmp_path), **settings)
    (tmp_path / "whole").mkdir()
    prepare_store(asked, tmp_path / "whole")
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    count = 0

    def stop(_: int) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise Interrupted

    folder = tmp_path / "part"
    with pytest.raises(Interrupted):
        prepare_folder(asked, folder, on_bytes=stop)
    with (folder / "tokens.bin").open("ab") as file:
        file.write(b"what was written behind the last commit")
    encoded = []
    prepare_folder(asked, folder, on_bytes=encoded.append)
    assert 0 < len(encoded) < len(list(open_data(asked.paths[0], BadRows())[1]))
    assert contents(folder) == contents(tmp_path / "whole")


def test_what_was_interrupted_of_other_data_is_not_gone_on_with(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    path = write(tmp_path / "a.jsonl", jsonl(TALKS))

    def stop(_: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        prepare_folder(asked_for(path), tmp_path / "out", on_bytes=stop)
    write(path, jsonl(TALKS[1:]))
    with pytest.raises(UsageError, match="--overwrite"):
        prepare_folder(asked_for(path), tmp_path / "out")
    examples, _ = prepare_folder(asked_for(path), tmp_path / "out", overwrite=True)
    assert len(examples) == 39


@pytest.mark.parametrize("kind", ["jsonl", "gz", "zst", "csv cp932", "text euc", "json", "parquet", "zip"])
def test_the_hash_of_a_file_is_made_while_it_is_read(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    """Only a file that is not read from its beginning to its end is read once more."""
    read: list[Path] = []

    def again(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    for module in (compression, preparing):
        monkeypatch.setattr(module, "sha256_of", again)
    path = SOURCES[kind][0](tmp_path)
    asked = replace(asked_for(path), sources=sources_of([str(path)], hashed=False))
    read.clear()
    _, manifest = prepare_folder(asked, tmp_path / "out")
    assert [source.sha256 for source in manifest.sources] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    assert bool(read) == (kind in ("parquet", "zip"))
    examples, _ = prepare_folder(asked, tmp_path / "out")
    same(examples, prepare_folder(asked_for(path), tmp_path / "out")[0])


@pytest.mark.parametrize("kind", ["jsonl", "csv cp932"])
def test_a_file_that_changed_but_for_its_size_is_not_gone_on_with(
    few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    path, read = SOURCES[kind][0](tmp_path), []
    asked = replace(asked_for(path), sources=sources_of([str(path)], hashed=False))

    def stop(_: int) -> None:
        read.append(1)
        if len(read) == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        prepare_folder(asked, tmp_path / "out", on_bytes=stop)
    before, written = path.read_bytes(), contents(tmp_path / "out")
    path.write_bytes(before.replace(b"x", b"y"))
    with pytest.raises(UsageError, match="--overwrite"):
        prepare_folder(asked, tmp_path / "out")
    assert len(read) == 3
    path.write_bytes(before)
    prepare_folder(asked, tmp_path / "out")
    assert contents(tmp_path / "out")["tokens.bin"].startswith(written["tokens.bin"][:64])


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "diary.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UsageError):
            prepare_folder(asked, folder, overwrite=overwrite)
    assert [path.name for path in folder.iterdir()] == ["diary.txt"]


def test_two_that_prepare_one_folder_do_not_meet(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))

    def second(_: int) -> None:
        with pytest.raises(RunLockedError):
            prepare_folder(asked, tmp_path / "out")

    examples, _ = prepare_folder(asked, tmp_path / "out", on_bytes=second)
    assert len(examples) == 40


def test_what_is_prepared_is_checked_whole_and_stays(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    prepare_folder(asked, tmp_path / "out")
    before = contents(tmp_path / "out")
    encoded: list[int] = []
    prepare_folder(asked, tmp_path / "out", on_bytes=encoded.append)
    assert not encoded
    assert contents(tmp_path / "out") == before
    with pytest.raises(UsageError):
        prepare_folder(replace(asked, config=DataConfig(max_length=100)), tmp_path / "out")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "shorter": lambda raw: raw[:-1],
    "longer": lambda raw: raw + b"\0",
    "changed": lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["tokens.bin", "runs.bin", "ends.bin", "tokens.json"])
def test_another_file_than_the_manifest_says_is_refused(tmp_path: Path, name: str, damage: str):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    prepare_folder(asked, tmp_path / "out")
    path = tmp_path / "out" / name
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(DataError, match="aift data prepare") as refused:
        open_store(tmp_path / "out")
    assert name in refused.value.en


def test_a_later_format_and_a_missing_file_are_refused_with_the_way_out(tmp_path: Path):
    prepare_folder(asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS))), tmp_path / "out")
    manifest = tmp_path / "out" / "tokens.json"
    before = manifest.read_text(encoding="utf-8")
    manifest.write_text(before.replace('"version": 1', '"version": 3'), encoding="utf-8")
    with pytest.raises(DataError, match="format 3"):
        open_store(tmp_path / "out")
    manifest.write_text(before, encoding="utf-8")
    (tmp_path / "out" / "ends.bin").unlink()
    with pytest.raises(DataError, match=r"ends\.bin"):
        open_store(tmp_path / "out")


def test_an_array_that_this_version_does_not_know_is_passed_over_and_checked_as_the_others(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    before, _ = prepare_folder(asked, tmp_path / "out")
    later = np.arange(40, dtype="<u8")
    later.tofile(file_of(tmp_path / "out", "later"))
    rewritten(tmp_path / "out", lambda manifest: manifest.arrays.update(later=ArrayEntry("<u8", items=40)))
    same(before, open_store(tmp_path / "out")[0])
    later[::-1].tofile(file_of(tmp_path / "out", "later"))
    with pytest.raises(DataError, match=r"later\.bin"):
        open_store(tmp_path / "out")


def test_a_vocabulary_above_65536_gets_wider_tokens(tmp_path: Path):
    tokenizer = build_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(66_000)])
    text = "東京<65999>は<1>首都です。"
    asked = replace(asked_for(write(tmp_path / "a.jsonl", jsonl([{"text": text}] * 3))), tokenizer=tokenizer)
    examples, manifest = prepare_folder(asked, tmp_path / "out")
    assert manifest.arrays["tokens"].kind == "<u4"
    assert manifest.largest == tokenizer.convert_tokens_to_ids("<65999>") > 2**16
    same(examples, load_examples(asked.paths[0], tokenizer, DataConfig(cache=False))[0])


def rewritten(folder: Path, change: Callable[[Any], None]) -> None:
    """Another manifest, with its own hash and those of the arrays as they are: what a stranger can write."""
    manifest = read_manifest(folder)
    change(manifest)
    for name, entry in manifest.arrays.items():
        entry.hashes = [hashlib.sha256(file_of(folder, name).read_bytes()).hexdigest()]
    (folder / "tokens.json").write_bytes(write_manifest(manifest))


def test_token_ids_that_the_tokenizer_has_not_are_refused_at_opening(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    prepare_folder(asked, tmp_path / "out")
    rewritten(tmp_path / "out", lambda manifest: setattr(manifest, "largest", 60_000))
    with pytest.raises(DataError, match="60000") as refused:
        open_prepared(tmp_path / "out", asked.tokenizer, asked.config)
    assert str(tmp_path / "out") in refused.value.en


FORGED: dict[str, Callable[[Path], None]] = {
    "tokens": lambda path: np.full(path.stat().st_size // 2, 60_000, "<u2").tofile(path),
    "ends": lambda path: np.fromfile(path, "<u8")[::-1].tofile(path),
    "runs": lambda path: (np.fromfile(path, "<u4") + 10**6).tofile(path),
    "files": lambda path: (np.fromfile(path, "<u4") + 9).tofile(path),
}


@pytest.mark.parametrize("name", FORGED)
def test_arrays_that_a_stranger_wrote_are_refused_before_they_reach_a_model(tmp_path: Path, name: str):
    """The manifest fits them, so that opening without reading all of them says nothing."""
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    prepare_folder(asked, tmp_path / "out")
    FORGED[name](file_of(tmp_path / "out", name))
    rewritten(tmp_path / "out", lambda manifest: None)
    examples, _, _ = open_prepared(tmp_path / "out", asked.tokenizer, asked.config)
    with pytest.raises(DataError, match="document 2 of .*out"):
        _ = examples[1]


@pytest.mark.skipif(os.name == "nt", reason="the file system keeps no holes")
def test_a_store_of_a_hundred_gigabytes_of_text_opens_in_less_than_a_second(tmp_path: Path):
    """The arrays are holes of as many bytes: 22 billion tokens in 20 million documents."""
    prepare_folder(asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS))), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    manifest.documents = 20_000_000
    for name, entry in manifest.arrays.items():
        entry.items = 22 * 10**9 if name == "tokens" else manifest.documents
        os.truncate(file_of(tmp_path / "out", name), 0)
        os.truncate(file_of(tmp_path / "out", name), entry.bytes)
        whole, rest = divmod(entry.bytes, BLOCK)
        ends = [hashlib.sha256(bytes(rest)).hexdigest()] if rest else []
        entry.hashes = [hashlib.sha256(bytes(BLOCK)).hexdigest()] * whole + ends
    (tmp_path / "out" / "tokens.json").write_bytes(write_manifest(manifest))
    before = time.process_time()
    examples, _ = open_store(tmp_path / "out")
    assert time.process_time() - before < 1
    assert len(examples) == 20_000_000


def test_files_keep_nothing_of_what_stands_in_bad_rows(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    path = write(tmp_path / "a.jsonl", jsonl([*TALKS[:5], '{"instruction": "ひみつの番号', *TALKS]))
    seen = []

    def look(_: int) -> None:
        seen.append((tmp_path / "out" / "progress.json").read_text(encoding="utf-8"))

    prepare_folder(asked_for(path, skip_bad_rows=True), tmp_path / "out", on_bytes=look)
    assert any("a.jsonl:6" in text for text in seen)
    assert not any("ひみつの番号" in text for text in [*seen, (tmp_path / "out" / "tokens.json").read_text("utf-8")])


def test_a_run_reads_prepared_data_as_it_reads_the_files(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", jsonl([*TALKS, *TALKS[:9]]))
    tokenizer = build_tokenizer()
    prepare_folder(asked_for(path, max_length=200), tmp_path / "out")
    for share in (None, 0.2):
        of_file, of_folder = (
            prepare(source, share, tokenizer, DataConfig(max_length=200, cache=False), seed=3)
            for source in (str(path), str(tmp_path / "out"))
        )
        same(of_file.train, of_folder.train)
        same(of_file.eval_data, of_folder.eval_data)
        assert of_file.digest == of_folder.digest
        assert of_file.lines == of_folder.lines
        assert (of_file.longest, of_file.eval_characters) == (of_folder.longest, of_folder.eval_characters)


def test_prepared_data_is_refused_where_a_run_would_make_other_tokens(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", jsonl(TALKS))
    out = tmp_path / "out"
    prepare_folder(asked_for(path, max_length=200), out)
    with pytest.raises(ConfigError, match=r"data\.max_length=200"):
        load_examples(str(out), build_tokenizer(), DataConfig())
    with pytest.raises(ConfigError, match="chat template"):
        load_examples(str(out), build_tokenizer(chat_template=None), DataConfig(max_length=200))
    with pytest.raises(ConfigError, match="skip_bad_rows"):
        open_prepared(out, build_tokenizer(), DataConfig(max_length=200, skip_bad_rows=True))
    with pytest.raises(DataError, match="prepare all the files together"):
        prepared_folder([out, path])
    with pytest.raises(DataError, match="name the files"):
        read_rows(out)


def test_the_rows_of_an_entry_are_limited_where_files_are_read_and_not_behind_that(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", jsonl(TALKS))
    tokenizer, config = build_tokenizer(), DataConfig(max_length=200, cache=False)
    entries = Sources((Entry((str(path),), epochs=1, max_samples=4), Entry((str(path),), weight=0.5)))
    data = prepare(entries, None, tokenizer, config, seed=3)
    assert data.sizes == (4, len(TALKS))
    line = next(line for line in data.lines if "rows left aside" in line or "使わない行" in line)
    assert line.startswith("a.jsonl: max_samples")  # of the entry: nobody set data.max_samples
    prepare_folder(asked_for(path, max_length=200), tmp_path / "out")
    folder = Sources((Entry((str(tmp_path / "out"),), epochs=1, max_samples=4),))
    with pytest.raises(ConfigError, match="remove max_samples, or prepare it anew"):
        prepare(folder, None, tokenizer, config, seed=3)


@pytest.mark.parametrize("rule", SPLITS)
def test_a_store_is_divided_as_a_list_is(tmp_path: Path, rule: str):
    path = write(tmp_path / "a.jsonl", jsonl([*TALKS, *TALKS[:9]]))
    examples, _ = prepare_folder(asked_for(path), tmp_path / "out")
    for seed in range(3):
        ours, theirs = SPLITS[rule](examples, 0.2, seed), SPLITS[rule](list(examples), 0.2, seed)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
            assert digest_of(one) == digest_of(other)
    assert shared_rows(*hold_out(examples, 0.2, 0)) == 0


def test_several_sources_are_asked_as_one(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", jsonl(TALKS))
    examples, _ = prepare_folder(asked_for(path), tmp_path / "out")
    plain = list(examples)
    whole = Joined(examples, [], chosen(examples, [3, 1]), plain[:2])
    expected = [*plain, plain[3], plain[1], *plain[:2]]
    same(whole, expected)
    same([whole[-1], whole[40]], [expected[-1], expected[40]])
    same(whole[38:43], expected[38:43])
    assert list(lengths_of(whole)) == list(map(len, expected))
    assert digest_of(whole) == digest_of(expected)
    with pytest.raises(IndexError):
        whole[len(expected)]


def test_the_cache_goes_on_where_it_was_interrupted(few, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    make, made = PieceMaker.make, []

    def failing(self: PieceMaker, *given: Any, **named: Any) -> Any:
        made.append(1)
        if len(made) == 4:
            raise Interrupted
        return make(self, *given, **named)

    monkeypatch.setattr(PieceMaker, "make", failing)
    with pytest.raises(Interrupted):
        cached_store(asked)
    same(cached_store(asked)[0], load_examples(asked.paths[0], asked.tokenizer, DataConfig(cache=False))[0])
    assert len(made) == 4 + 5
    cached_store(asked)
    assert len(made) == 4 + 5


def test_what_workers_answer_is_what_this_process_makes(few, tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl",
        jsonl([*TALKS, "{broken", {"instruction": "\ud800", "output": "答"}])
        .encode("utf-8", "surrogatepass")
        .decode("utf-8", "replace"),
    )
    maker = PieceMaker(build_tokenizer(), Reading.of(DataConfig()))
    for source in (path, SOURCES["csv cp932"][0](tmp_path)):
        for batch in open_data(source, BadRows())[1]:
            asked, answer = io.BytesIO(), io.BytesIO()
            send_batch(asked, batch, None)
            asked.seek(0)
            serve(maker, asked, answer)
            answer.seek(0)
            obtained = receive_answer(answer)
            assert obtained is not None
            examples, account = maker.make(batch, None)
            documents = documents_of(examples)
            for (name, one), (_, other) in zip(obtained[0].arrays, documents.arrays, strict=True):
                assert np.array_equal(one, other), name
            assert obtained[0].names == documents.names
            assert obtained[1] == account


def test_reports_survive_being_written(few, tmp_path: Path):
    make, settings = SOURCES["bad rows"]
    maker = PieceMaker(build_tokenizer(), Reading.of(DataConfig(**settings)))
    whole = Account()
    for batch in open_data(make(tmp_path), BadRows())[1]:
        whole.merge(maker.make(batch, ["instruction", "output", "memo"])[1])
    assert from_plain(Account, json.loads(json.dumps(to_plain(whole)))) == whole
    with pytest.raises((KeyError, TypeError)):
        from_plain(Account, {"rows": "3"})


@pytest.mark.parametrize(
    "source", ["a.csv:12", "a.json[3]", "b:c.csv:1", "a.csv:007", "a[0]", "[5]", "texts", "a:0", "表[2]シート:9"]
)
def test_where_a_row_stood_is_kept(source: str):
    assert joined(*parted(source)) == source


def test_the_verb_counts_prepares_and_says_how_to_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    path, out = write(tmp_path / "a.jsonl", jsonl(TALKS)), tmp_path / "out"
    command = ["data", "prepare", str(path), "--model", "embedded:kotoha-tiny", "data.max_length=300"]
    assert run([*command, "--dry-run", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)
    assert counted["rows"] == 40
    assert not out.exists()
    assert run([*command, "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["rows"], said["tokens"]) == (40, counted["tokens"])
    assert run([*command, "--out", str(out)]) == 0
    assert f"data.train={out} data.max_length=300" in capsys.readouterr().out
    assert run([*command, "--out", str(out), "data.loss_on=all"]) == 64
    (out / "tokens.bin").write_bytes(b"")
    assert run([*command, "--out", str(out)]) == 65
    assert run([*command]) == 64
    assert (
        run(["data", "prepare", str(tmp_path / "no.jsonl"), "--model", "embedded:kotoha-tiny", "--out", str(out)]) == 66
    )


def test_the_verb_takes_patterns_and_folders_and_names_the_file_and_line_of_a_bad_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "more").mkdir()
    for name in ("a.jsonl.gz", "b.jsonl.gz", "more/c.jsonl"):
        write(tmp_path / name, jsonl(TALKS[:5]))
    command = [
        "data",
        "prepare",
        str(tmp_path / "*.jsonl.gz"),
        str(tmp_path / "more"),
        "--model",
        "embedded:kotoha-tiny",
    ]
    assert run([*command, "--out", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == 15
    write(tmp_path / "more" / "c.jsonl", jsonl([*TALKS[:2], {"instruction": "問", "output": ""}]))
    assert run([*command, "--out", str(tmp_path / "other")]) == 65
    assert f"{tmp_path / 'more' / 'c.jsonl'}:3" in capsys.readouterr().err
    assert run([*command, "--out", str(tmp_path / "other"), "data.skip_bad_rows=true", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == 1


def test_a_survey_counts_all_rows_of_all_sources(few, tmp_path: Path):
    paths = [str(write(tmp_path / name, jsonl(TALKS))) for name in ("a.jsonl", "b.jsonl")]
    found = survey(Preparation(tuple(paths), DataConfig(), build_tokenizer(), sources_of(paths)))
    assert (found.rows, found.encoded) == (80, 10)
    exact = load_examples([Path(path) for path in paths], build_tokenizer(), DataConfig(cache=False))[1]
    assert abs(found.tokens - exact.tokens) < 0.2 * exact.tokens


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "csv cp932", "rows without a format first"])
def test_several_processes_write_the_same_bytes(few, tmp_path: Path, kind: str):
    """Two workers open the tokenizer by its path."""
    make, settings = SOURCES[kind]
    asked = asked_for(make(tmp_path), **settings)
    threads = threading.active_count()
    for name, processes in (("one", 1), ("two", 2)):
        prepare_folder(asked, tmp_path / name, encoder=encoder_for(asked.tokenizer, 0, processes))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert threading.active_count() == threads


def test_workers_ask_for_huge_pages_and_what_the_user_says_of_memory_stays(tmp_path: Path, monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    told = tmp_path / "environment"
    tell = f"import json, os, sys; json.dump(dict(os.environ), open({str(told)!r}, 'w')); sys.stdin.buffer.read()"
    Pool([sys.executable, "-c", tell], 1, build_tokenizer(), Reading.of(DataConfig())).close()
    environment = json.loads(told.read_text())
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["MALLOC_ARENA_MAX"] == "3"


@pytest.mark.slow
def test_a_store_that_was_moved_is_the_same(tmp_path: Path):
    asked = asked_for(write(tmp_path / "a.jsonl", jsonl(TALKS)))
    examples, _ = prepare_folder(asked, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    same(examples, open_store(tmp_path / "moved", every_block=True)[0])


@pytest.mark.parametrize(
    ("raw", "encoding"),
    [
        ("東京".encode("cp932") * 400_000, "cp932"),
        ("東京都".encode("euc_jp") * 300_000 + "ひらがな".encode("euc_jp"), "euc_jp"),
        ("あ".encode() * 400_000, "utf-8"),
        ("\ufeffあい".encode("utf-16-le") * 300_000, "utf-16"),
        (b"x" * 1_100_000 + "東京".encode("iso2022_jp"), "iso2022_jp"),
        ("あ".encode() * 400_000 + b"\xff" + "い".encode() * 10, "utf-8"),
    ],
)
def test_the_encoding_of_a_file_of_many_blocks(raw: bytes, encoding: str):
    text, obtained = decode(raw, "a")
    assert obtained == encoding
    assert text.encode(encoding, "surrogateescape") == raw if encoding != "utf-16" else "あい" in text


@pytest.mark.slow
def test_a_run_on_a_prepared_folder_has_the_losses_of_one_on_the_file(tmp_path: Path):
    path, out = write(tmp_path / "a.jsonl", jsonl(TALKS)), tmp_path / "out"
    given = ["data.max_length=200", "data.loss_on=all"]
    command = ["data", "prepare", str(path), "--model", "embedded:kotoha-tiny", "--out", str(out), "--processes", "1"]
    assert run([*command, *given]) == 0
    losses = []
    for source in (path, out):
        folder = tmp_path / f"run-{source.name}"
        options = [
            f"training.output_dir={folder}",
            "training.schedule.max_steps=2",
            "training.runtime.report_samples=0",
        ]
        assert run(["train", "model=embedded:kotoha-tiny", f"data.train={source}", *given, *options]) == 0
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    assert losses[0] == losses[1] != []


def test_the_digest_of_documents_is_the_same_however_many_are_added_at_a_time(monkeypatch: pytest.MonkeyPatch):
    generator = np.random.default_rng(3)
    rows = []
    for length in (1, 2, 900, 3, 4000, 17):
        ids = generator.integers(0, 50, length).astype(np.int32)
        labels = np.where(generator.random(length) < 0.6, ids, IGNORED).astype(np.int32)
        labels[0] = IGNORED
        rows.append(Example(ids, labels, mark=-1 if length == 17 else 1))
    for size in (1, 4096, 2**20):
        monkeypatch.setattr(writer, "_HASHED", size)
        digest = hashlib.sha256()
        writer._add_to(digest, documents_of(rows))
        assert digest.hexdigest() == digest_of(rows)
