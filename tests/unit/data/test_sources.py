"""Containers that users hand to train(): rows, or refused; never their keys or lines."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy
import pytest

from ai_finetuning.data.messages import PlainText
from ai_finetuning.data.rows import FileReport
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError

ROWS = [{"instruction": "首都は？", "output": "東京です。"}, {"instruction": "人口は？", "output": "多い。"}]


def contents(source: object) -> list[list[str]]:
    return [[message.content for message in sample.messages] for sample in load_samples(source)[0]]


EXPECTED = [list(row.values()) for row in ROWS]


def test_frames_tables_and_dictionaries_of_columns_are_rows():
    import pandas
    import pyarrow
    from datasets import Dataset, DatasetDict

    for source in (
        pandas.DataFrame(ROWS),
        pyarrow.Table.from_pylist(ROWS),
        {key: [row[key] for row in ROWS] for key in ROWS[0]},
        Dataset.from_list(ROWS),
        DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])),
        iter(ROWS),
        tuple(ROWS),
    ):
        assert contents(source) == EXPECTED, type(source)


def test_a_series_is_a_list_of_texts_and_missing_values_of_a_frame_are_missing():
    import pandas

    assert load_samples(pandas.Series(["一", "二"]))[0] == [PlainText("一", "[1]"), PlainText("二", "[2]")]
    with pytest.raises(DataError, match="output is empty"):
        load_samples(pandas.DataFrame([ROWS[0], {"instruction": "人口は？", "output": None}]))


def test_arrays_and_numbers_of_numpy_are_lists_and_numbers():
    pandas = pytest.importorskip("pandas")
    talk = [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京です。"}]
    frame = pandas.DataFrame({"messages": [numpy.array(talk, dtype=object)]})  # as pandas.read_parquet gives it
    assert contents(frame) == [["首都は？", "東京です。"]]
    row = {"question": numpy.str_("一は？"), "answer": numpy.int64(1), "history": numpy.array([["零は？", "0"]])}
    assert contents([row]) == [["零は？", "0", "一は？", "1"]]
    assert contents({"question": numpy.array(["一は？"]), "answer": numpy.array(["1"])}) == [["一は？", "1"]]
    dated = pandas.DataFrame({"question": ["いつ？"], "answer": [pandas.Timestamp("2024-04-01")]})
    assert contents(dated) == [["いつ？", "2024-04-01 00:00:00"]]
    with pytest.raises(DataError, match=r"one name \(question\)"):
        load_samples(pandas.DataFrame([["一", "二"]], columns=["question", "question"]))


def test_splits_of_a_dataset_dict_that_are_not_read_are_named():
    from datasets import Dataset, DatasetDict

    _, report = load_samples(DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS)))
    assert "split not read: test (2 rows)" in "\n".join(report.lines())


@pytest.mark.parametrize(
    "source", [{"一", "二"}, frozenset(["一"]), b"text", {"instruction": "首都は？", "output": "東京"}, 3]
)
def test_containers_without_an_order_or_without_rows_are_refused(source: object):
    with pytest.raises(DataError, match=type(source).__name__):
        load_samples(source)


def test_an_open_file_is_refused(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(ROWS[0], ensure_ascii=False), encoding="utf-8")
    with path.open(encoding="utf-8") as file, pytest.raises(DataError, match="TextIOWrapper"):
        load_samples(file)
    with pytest.raises(DataError, match="StringIO"):
        load_samples(io.StringIO("一\n二"))


def test_rows_of_several_formats_in_one_file_are_each_read_as_what_they_are():
    rows = [
        *ROWS,
        {"messages": [{"role": "user", "content": "天気は？"}, {"role": "assistant", "content": "晴れ"}]},
        {"text": "文"},
    ]
    samples, report = load_samples(rows)
    assert len(samples) == 4
    assert dict(report.formats) == {"question and answer": 2, "messages": 1, "text": 1}


def test_a_character_that_only_other_tools_accept_is_counted_and_named():
    rows = [ROWS[0], {"instruction": "人口は？", "output": "多い\u0085。"}]
    samples, report = load_samples(rows)
    assert len(samples) == 2
    assert any("U+0080-U+009F" in line and "[2]" in line for line in report.lines())


def test_the_report_of_a_file_is_in_the_language_of_the_user(monkeypatch: pytest.MonkeyPatch):
    report = FileReport("a.csv", "csv", "cp932", 3, [("読まない", "not read")])
    monkeypatch.setenv("AIFT_LANG", "ja")
    assert report.lines() == ["a.csv: csv、cp932、3 行", "a.csv: 読まない"]
    monkeypatch.setenv("AIFT_LANG", "en")
    assert report.lines() == ["a.csv: csv, cp932, 3 rows", "a.csv: not read"]
