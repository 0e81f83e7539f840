"""Data as people have it: what lies beside it in a folder, names twice, patterns, files that go or change, half a copy."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call
from tests.support.models import build_tokenizer

from ai_finetuning import DataConfig
from ai_finetuning.config.data import ReplayConfig
from ai_finetuning.config.mixture import Sources
from ai_finetuning.config.preference import Objective
from ai_finetuning.data import files
from ai_finetuning.data.bad_rows import BadRows
from ai_finetuning.data.compression import unpack
from ai_finetuning.data.files import open_data, read_rows
from ai_finetuning.data.prepare import prepare
from ai_finetuning.data.prepared import look_into, open_prepared
from ai_finetuning.data.store import arrays, preparing, writer
from ai_finetuning.data.store.folder import cached_store, prepare_folder
from ai_finetuning.data.store.mapped import ARRAYS, FURTHER
from ai_finetuning.data.store.preparing import Preparation, sources_of
from ai_finetuning.data.streamed import RowStream
from ai_finetuning.data.streamed_loader import StreamedLoader
from ai_finetuning.errors import ConfigError, DataError, InputNotFoundError, StorageError, UsageError
from ai_finetuning.execution.sources import config_source
from ai_finetuning.execution.validate import validate_data

MODEL = "embedded:kotoha-tiny"


def rows(count: int, of: str = "町") -> list[dict[str, str]]:
    return [{"instruction": f"第{number}の{of}は？", "output": f"{of}{number}です。"} for number in range(count)]


def write(path: Path, content: Sequence[Mapping[str, object]] | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = (
        content if isinstance(content, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    )
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(params=["ja", "en"])
def language(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AIFT_LANG", request.param)
    return str(request.param)


def asked_for(path: Path, tokenizer: Any, objective: Objective = "sft", **settings: Any) -> Preparation:
    return Preparation((str(path),), DataConfig(**settings), tokenizer, sources_of([str(path)]), objective)


def test_what_programs_leave_in_a_folder_is_no_data_and_files_without_a_row_are_named(tmp_path: Path, language: str):
    folder = tmp_path / "d"
    write(folder / "a.jsonl", rows(3))
    for name, content in {
        "~$book.xlsx": "\x05",
        "._a.jsonl": "\0",
        ".b.jsonl": "{",
        "empty.jsonl": "",
        "blank.jsonl": "\n \n",
    }.items():
        write(folder / name, content)
    obtained, report = read_rows(folder)
    assert len(obtained) == 3
    assert any("blank.jsonl, empty.jsonl" in line for line in report.lines())
    assert not any("~$" in line or "._" in line for line in report.lines())
    shutil.make_archive(str(tmp_path / "z"), "zip", folder)
    (folder / "empty.jsonl").unlink()
    (folder / "blank.jsonl").unlink()
    archive = shutil.make_archive(str(tmp_path / "y"), "zip", folder)
    assert unpack(Path(archive), {".jsonl", ".xlsx"})[1] == ".jsonl"


def test_a_file_of_two_names_is_said(tmp_path: Path, tokenizer: Any, language: str):
    path, link = write(tmp_path / "a.jsonl", rows(3)), tmp_path / "b.jsonl"
    link.symlink_to(path)
    said = {"ja": "2 回以上", "en": "more than once"}[language]
    for train in (
        [path, link],
        [path, tmp_path / "." / "a.jsonl"],
        Sources(config_source([{"path": str(path)}, {"path": str(link)}]).entries),
    ):
        data = prepare(train, None, tokenizer, DataConfig(cache=False), seed=0)
        assert len(data.train) == 6
        assert any(said in line and "a.jsonl" in line for line in data.lines)
    assert not any(said in line for line in prepare(path, None, tokenizer, DataConfig(cache=False), seed=0).lines)


def test_patterns_of_a_run_are_their_files(tmp_path: Path, tokenizer: Any):
    for name in ("a.jsonl", "b.jsonl", "c [1].jsonl"):
        write(tmp_path / name, rows(2, name))
    pattern = str(tmp_path / "[ab].jsonl")
    assert config_source(pattern) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    assert config_source([str(tmp_path / "c [1].jsonl"), pattern]) == [
        tmp_path / "c [1].jsonl",
        tmp_path / "a.jsonl",
        tmp_path / "b.jsonl",
    ]
    sources = config_source([{"path": str(tmp_path / "*.jsonl"), "weight": 1}, {"path": pattern, "weight": 1}])
    assert [len(entry.path) for entry in sources.entries] == [3, 2]
    assert len(prepare(sources, None, tokenizer, DataConfig(cache=False), seed=0).train) == 10
    replay = ReplayConfig(path=pattern, share=0.5)
    assert len(prepare(tmp_path / "a.jsonl", None, tokenizer, DataConfig(cache=False, replay=replay), seed=0).old) == 4
    with pytest.raises(InputNotFoundError, match="no file matches"):
        config_source(str(tmp_path / "*.csv"))


@pytest.mark.parametrize("name", ["train", "eval"])
def test_an_empty_name_in_a_list_is_no_folder(name: str):
    with pytest.raises(ConfigError, match=rf"data\.{name}"):
        DataConfig(**{name: ["", "a.jsonl"]})
    with pytest.raises(ConfigError, match="path"):
        DataConfig(train=[{"path": " "}])


def test_a_name_that_only_looks_the_same_is_explained(tmp_path: Path):
    write(tmp_path / unicodedata.normalize("NFD", "ガイド.jsonl"), rows(1))
    with pytest.raises(InputNotFoundError, match="decomposed, as macOS does"):
        files.find_data(tmp_path / "ガイド.jsonl")


@pytest.mark.parametrize("name", ["", " ", "\u3000"])
def test_an_empty_name_is_not_the_current_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`data.train=$FILE` with a variable that is not set would train on whatever lies there."""
    (tmp_path / "notes.txt").write_text("学習に使うつもりのない文章です。\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert files.find_data(".") == Path(".")
    with pytest.raises(InputNotFoundError, match="the name of the data is empty"):
        files.find_data(name)
    for given in ({"train": name}, {"train": "notes.txt", "eval_data": name}):
        with pytest.raises(InputNotFoundError, match="is empty"):
            validate_data(**given)


def test_a_file_that_goes_while_its_folder_is_read_is_refused(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / "d" / name, rows(3))
    _, batches = open_data(tmp_path / "d", BadRows())
    next(batches)
    (tmp_path / "d" / "b.jsonl").unlink()
    with pytest.raises(InputNotFoundError, match=r"b\.jsonl cannot be read"):
        list(batches)
    # As for a user without the right, and for a file that goes between being listed and being hashed.
    path = tmp_path / "d" / "a.jsonl"
    monkeypatch.setattr(preparing, "data_files", lambda _: [path, tmp_path / "d" / "b.jsonl"])
    with pytest.raises(InputNotFoundError, match=r"b\.jsonl cannot be read"):
        sources_of([str(tmp_path / "d")])


def streamed(paths: list[Path], tokenizer: Any) -> StreamedLoader:
    stream = RowStream([str(path) for path in paths], tokenizer, DataConfig(streaming=True, max_length=64))
    stream.digest()
    return StreamedLoader(stream, rows_per_step=2, pad_token_id=tokenizer.pad_token_id)


def changes(folder: Path) -> Iterator[tuple[str, Any]]:
    yield "grown", lambda: write(folder / "a.jsonl", rows(6))
    yield "of the same size", lambda: write(folder / "a.jsonl", rows(4, "村"))
    yield "new", lambda: write(folder / "c.jsonl", rows(1))
    yield "gone", lambda: (folder / "b.jsonl").unlink()


@pytest.mark.parametrize("number", range(4))
def test_streamed_files_that_have_changed_are_refused_when_they_are_read_once_more(
    tmp_path: Path, tokenizer: Any, number: int
):
    folder = tmp_path / "d"
    for name in ("a.jsonl", "b.jsonl"):
        write(folder / name, rows(4))
    loader = streamed([folder], tokenizer)
    for index in range(4):
        assert loader.micro_batches(0, index, 2)
    again = streamed([folder], tokenizer)
    for index in range(4):
        again.micro_batches(0, index, 2)
    assert again.micro_batches(1, 0, 2)
    list(changes(folder))[number][1]()
    with pytest.raises(DataError, match=r"changed since this run began .*allow_changed"):
        loader.micro_batches(1, 0, 2)


def test_streamed_lists_are_looked_at_before_the_first_step(tmp_path: Path, tokenizer: Any):
    path, out = write(tmp_path / "a.jsonl", rows(4)), tmp_path / "out"
    prepare_folder(asked_for(path, tokenizer), out)
    for other, words in ((out, "folder of tokens"), (write(tmp_path / "e.jsonl", ""), "Name a file with rows")):
        stream = RowStream([str(path), str(other)], tokenizer, DataConfig(streaming=True))
        with pytest.raises(DataError, match=words):
            stream.look()


def test_half_of_a_prepared_folder_is_no_data(tmp_path: Path, tokenizer: Any):
    path, out = write(tmp_path / "a.jsonl", rows(4)), tmp_path / "out"
    prepare_folder(asked_for(path, tokenizer), out)
    (out / "tokens.json").unlink()
    with pytest.raises(DataError, match=r"tokens\.json is missing.*copy all of the folder again"):
        prepare(out, None, tokenizer, DataConfig(), seed=0)


@pytest.mark.parametrize(
    ("objective", "samples"),
    [
        ("sft", rows(40)),
        ("preference", [{"prompt": f"問{at}", "chosen": f"良い{at}。", "rejected": f"悪い{at}。"} for at in range(40)]),
        ("kto", [{"prompt": f"問{at}", "completion": f"答え{at}。", "label": at % 2 == 0} for at in range(40)]),
    ],
)
def test_what_was_written_before_an_interruption_is_compared_when_it_goes_on(
    objective: Objective,
    samples: list[dict[str, object]],
    tmp_path: Path,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    """All of it, and not only what is trained."""
    caplog.set_level("INFO")
    monkeypatch.setattr(files, "_TOGETHER", 5)
    monkeypatch.setattr(preparing, "_COMMIT", 1)
    monkeypatch.setattr(arrays, "BLOCK", 64)  # arrays of several blocks, of which the last is not full
    asked = asked_for(write(tmp_path / "a.jsonl", samples), tokenizer, objective=objective)
    whole, _ = prepare_folder(asked, tmp_path / "whole")
    commit, left = writer.StoreWriter.commit, [2]

    def interrupted(self: Any) -> None:
        commit(self)
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    for stop in (2, 1, 3):  # three times, each further on
        left[0] = stop
        with monkeypatch.context() as patch:
            patch.setattr(writer.StoreWriter, "commit", interrupted)
            with pytest.raises(KeyboardInterrupt):
                prepare_folder(asked, out)
    assert json.loads((out / "progress.json").read_text(encoding="utf-8"))["batches"] == 6
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.bin")}
    assert len(expected) == len(ARRAYS) + len(FURTHER[objective])
    for name in expected:
        for place in (7, -1):
            again = tmp_path / f"{name} {place}"
            shutil.copytree(out, again)
            raw = bytearray((again / name).read_bytes())
            raw[place] ^= 1
            (again / name).write_bytes(raw)
            caplog.clear()
            assert prepare_folder(asked, again)[0].digest == whole.digest
            assert {path.name: path.read_bytes() for path in again.glob("*.bin")} == expected
            assert "damaged; it begins anew" in caplog.text
    caplog.clear()
    prepare_folder(asked, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.bin")} == expected
    assert "anew" not in caplog.text


def test_a_cache_without_room_keeps_nothing_of_it_and_the_run_goes_on(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    path = write(tmp_path / "a.jsonl", rows(40))
    monkeypatch.setenv("AIFT_CACHE", str(tmp_path / "cache"))

    def full(*_: Any, **__: Any) -> None:
        raise StorageError("", "")

    monkeypatch.setattr(writer.StoreWriter, "finish", full)
    with pytest.raises(StorageError):
        cached_store(asked_for(path, tokenizer))
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert len(prepare(str(path), None, tokenizer, DataConfig(), seed=0).train) == 40
    assert "made in memory" in caplog.text


def test_prepared_data_whose_files_have_changed_says_so(tmp_path: Path, tokenizer: Any, language: str):
    path, out = write(tmp_path / "a.jsonl", rows(4)), tmp_path / "out"
    prepare_folder(asked_for(path, tokenizer), out)
    said = {"ja": "元のファイルが変わりました", "en": "files have changed"}[language]

    def changed() -> bool:
        return any(said in line and str(path) in line for line in open_prepared(out, tokenizer, DataConfig())[2])

    later = (out / "tokens.json").stat().st_mtime + 10
    os.utime(path, (later, later))
    assert not changed()
    write(path, rows(4, "村"))  # as many bytes
    os.utime(path, (later, later))
    assert changed()
    write(path, rows(5))
    assert changed()
    path.unlink()
    assert not changed()


@pytest.mark.parametrize(
    ("prepared", "run"),
    [
        ({}, {"max_samples": 2}),
        ({}, {"system_prompt": "丁寧に答えてください。"}),
        ({"system_prompt": "1 つだけ"}, {}),
        ({}, {"sheet": "表"}),
        ({"columns": {"instruction": "instruction", "output": "output"}}, {"columns": None}),
        ({}, {"columns": {"instruction": "instruction"}}),
        ({"skip_bad_rows": True}, {"skip_bad_rows": False}),
        ({"on_long": "drop"}, {}),
    ],
)
def test_the_setting_that_a_refusal_names_is_one_that_works(
    tmp_path: Path, prepared: dict[str, Any], run: dict[str, Any], tokenizer: Any
):
    import shlex

    from ai_finetuning.config.load import load_config

    out = tmp_path / "out"
    prepare_folder(asked_for(write(tmp_path / "a.jsonl", rows(4)), tokenizer, **prepared), out)
    with pytest.raises(ConfigError) as refused:
        open_prepared(out, tokenizer, DataConfig(**run))
    text = refused.value.en
    setting = shlex.split(text[text.index("; set ") + 6 : text.index(", or run")])
    assert len(open_prepared(out, tokenizer, load_config(None, setting).data)[0]) == 4


def test_people_can_look_into_a_prepared_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str], tokenizer: Any):
    path, out = write(tmp_path / "a.jsonl", rows(4)), tmp_path / "out"
    assert (
        call(
            "data", "prepare", str(path), "--model", MODEL, "--out", str(out), "data.max_length=99", "--processes", "1"
        )
        == 0
    )
    capsys.readouterr()
    shown = []
    for file in (path, out):
        assert call("data", "show", str(file), "--model", MODEL, "--row", "2", "--json") == 0
        shown.append(json.loads(capsys.readouterr().out)["rows"])
        assert call("data", "stats", str(file), "--model", MODEL, "--max-length", "10", "--json") == 0
        shown[-1].append(json.loads(capsys.readouterr().out)["rows_over"])
    assert shown[0] == shown[1]
    with pytest.raises(ConfigError, match="another tokenizer"):
        look_into(out, tokenizer)


def test_the_verb_refuses_files_as_a_setting_and_a_file_as_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = write(tmp_path / "a.jsonl", rows(4))
    for extra, words in (
        (["--out", str(path)], "which is a file"),
        (["--out", str(tmp_path / "o"), f"data.train={path}"], "as arguments"),
    ):
        assert call("data", "prepare", str(path), "--model", MODEL, "--processes", "1", *extra) == UsageError.exit_code
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_damaged_and_empty_files_come_with_a_way_out(tmp_path: Path, language: str):
    cut = write(tmp_path / "a.jsonl.gz", "no gzip")
    with pytest.raises(DataError) as refused:
        read_rows(cut)
    assert "Copy or download it again" in refused.value.en
    assert "やり直してください" in refused.value.ja
    with pytest.raises(DataError) as refused:
        read_rows(write(tmp_path / "e.csv", "instruction,output\n"))
    assert "Name a file with rows" in refused.value.en
    assert "指定する" in refused.value.ja


def test_an_entry_of_which_no_row_is_taken_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, tiny_model_dir: Path
):
    caplog.set_level("INFO")
    a, b = write(tmp_path / "a.jsonl", rows(4)), write(tmp_path / "b.jsonl", rows(4, "村"))
    entries = f"[{{path: {a}, weight: 1}}, {{path: {b}, weight: 0.001}}]"
    assert (
        call("plan", f"model={tiny_model_dir}", f"data.train={entries}", "fp16=false", f"output_dir={tmp_path / 'out'}")
        == 0
    )
    assert "no row of b.jsonl" in caplog.text


@pytest.mark.slow
def test_a_run_whose_data_is_a_pattern_goes_on(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """From any folder."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, rows(4, name))
    options = ("fp16=false", "progress=false", "batch_size=2", "gradient_accumulation_steps=1", "report_samples=0")
    out, data = tmp_path / "out", "data.train=[ab].jsonl"
    stops = ("num_epochs=1", "training.evaluation.verdict=false", "save_steps=2", f"output_dir={out}")
    assert call("train", f"model={tiny_model_dir}", data, *options, *stops) == 0
    capsys.readouterr()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("resume", str(out), "num_epochs=2", "--allow-changed") == 0
    write(tmp_path / "b.jsonl", rows(5))
    assert call("resume", str(out), "num_epochs=3") == 78
    assert "data" in capsys.readouterr().err
