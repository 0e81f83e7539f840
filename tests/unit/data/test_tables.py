"""Tables and texts as people have them: titles above the heading, other delimiters, workbooks, archives, folders."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import openpyxl
import pyarrow
import pytest

from ai_finetuning.data.columns import role_of
from ai_finetuning.data.compression import UNPACK
from ai_finetuning.data.files import read_rows
from ai_finetuning.data.sources import load_samples
from ai_finetuning.data.spreadsheet import shown
from ai_finetuning.errors import DataError

ROWS = [("首都は？", "東京です。"), ("人口は？", "一千四百万人です。")]
PAIRS = [list(row) for row in ROWS]


def texts(path: Path | str, **options: object) -> list[list[str]]:
    samples, _ = load_samples(str(path), **options)  # type: ignore[arg-type]
    return [[message.content for message in sample.messages] for sample in samples]


def csv_file(folder: Path, *lines: str, name: str = "a.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("mark", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_the_delimiter_is_the_one_under_which_a_heading_shows(tmp_path: Path, mark: str, name: str):
    assert texts(csv_file(tmp_path, mark.join(("質問", "回答")), *map(mark.join, ROWS), name=name)) == PAIRS


def test_what_stands_above_the_heading_is_named(tmp_path: Path):
    path = csv_file(
        tmp_path, "よくある質問一覧,,更新日,令和6年4月1日", "", "No,質問,回答,備考", "1,首都は？,東京です。,済"
    )
    assert texts(path) == PAIRS[:1]
    rows, report = read_rows(path)
    assert rows[0].source == f"{path}:4"
    assert report.notes[0][1] == "rows above the heading (line 3) that are not read: 1"


def test_a_table_without_a_heading_says_so_and_prints_no_whole_answers(tmp_path: Path):
    answer = "このたびはお問い合わせいただきありがとうございます。担当者より折り返しご連絡いたします。"
    with pytest.raises(DataError) as refusal:
        texts(csv_file(tmp_path, f"送料はいくらですか？,{answer}", "返品は？,できます。"))
    assert "no heading row" in refusal.value.en
    assert answer not in refusal.value.en
    assert "見出し" in refusal.value.ja


def test_the_example_of_a_refusal_names_the_likeliest_columns(tmp_path: Path):
    with pytest.raises(DataError) as refusal:
        texts(
            csv_file(tmp_path, "番号,聞いたこと,言ったこと", "1,首都はどこですか？,東京です。", "2,人口は？,多いです。")
        )
    assert "'data.columns={instruction: 聞いたこと, output: 言ったこと}'" in refusal.value.en


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.xlsx", "a.jsonl"])
def test_one_heading_twice_is_refused(tmp_path: Path, name: str):
    cells = [["質問", "回答", "回答"], ["送料は？", "五百円です。", "（旧）六百円です。"]]
    path = tmp_path / name
    if name == "a.xlsx":
        book = openpyxl.Workbook()
        for row in cells:
            book.active.append(row)
        book.save(path)
    elif name == "a.jsonl":
        path.write_text(
            '{"質問": "送料は？", "回答": "五百円です。", "回答": "（旧）六百円です。"}\n', encoding="utf-8"
        )
    else:
        csv_file(tmp_path, *(("," if name == "a.csv" else "\t").join(row) for row in cells), name=name)
    with pytest.raises(DataError, match="回答"):
        texts(path)


def test_columns_without_a_role_may_share_a_heading_and_have_none(tmp_path: Path):
    path = csv_file(tmp_path, ",質問,回答,備考,備考", "0,首都は？,東京です。,甲,乙")
    _, report = load_samples(path)
    assert dict(report.unused_columns) == {"#1": 1, "備考": 1, "備考 (#5)": 1}


def test_records_of_several_lines_are_named_by_their_first(tmp_path: Path):
    path = csv_file(tmp_path, "質問,回答", '"一\n二",三', '"四\n五\n六",', "七,八")
    with pytest.raises(DataError, match=r"a\.csv:4: 回答 is empty"):
        texts(path)
    assert [row.source.rsplit(":", 1)[1] for row in read_rows(path)[0]] == ["2", "4", "7"]


def test_a_short_record_lacks_its_answer_and_a_long_one_is_named(tmp_path: Path):
    with pytest.raises(DataError) as refusal:
        texts(csv_file(tmp_path, "質問,回答", "首都は？", "人口は？,多い,余り"))
    assert "a.csv:2: 回答 is empty" in refusal.value.en
    assert "a.csv:3: 3 cells but only 2 headings" in refusal.value.en


def test_a_quote_that_does_not_close_is_named_by_its_record(tmp_path: Path):
    with pytest.raises(DataError, match="record from line 3"):
        texts(csv_file(tmp_path, "質問,回答", "首都は？,東京です。", '"人口は？,多い。'))


def book_of(**sheets: list[list[object]]) -> openpyxl.Workbook:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    return book


FAQ = [["質問", "回答"], *PAIRS]


def test_the_sheet_whose_heading_fits_is_read_and_the_others_are_named(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    book = book_of(表紙=[["よくある質問集"], ["令和6年"]], FAQ=FAQ, 旧版=[["質問", "回答"], ["古い", "答え"]], 隠し=FAQ)
    book["隠し"].sheet_state = "hidden"
    book.save(path)
    assert texts(path) == PAIRS
    _, report = read_rows(path)
    text = "\n".join(report.lines())
    assert "sheet 'FAQ'" in text
    for line in ("表紙 (2 rows)", "旧版 (2 rows)", "隠し (3 rows, hidden)"):
        assert line in text
    assert texts(path, sheet="旧版") == [["古い", "答え"]]
    assert texts(path, sheet="隠し") == PAIRS
    with pytest.raises(DataError, match="無い"):
        texts(path, sheet="無い")


def test_a_sheet_of_what_has_none_is_told_to_have_no_effect(tmp_path: Path):
    path = tmp_path / "faq.csv"
    path.write_text("質問,回答\nq,a\n", encoding="utf-8")
    _, report = read_rows(path, sheet="FAQ")
    assert "no workbook: sheet FAQ has no effect" in "".join(report.lines())
    _, report = read_rows(path)
    assert "no workbook" not in "".join(report.lines())


def test_a_workbook_of_hidden_sheets_is_not_read_unsaid(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    book = book_of(表紙=[["空"]], 隠し=FAQ)
    book["隠し"].sheet_state = "hidden"
    book.save(path)
    with pytest.raises(DataError):
        texts(path)


def test_error_values_of_a_workbook_are_bad_rows(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    book_of(FAQ=[["質問", "回答"], *PAIRS, ["誤り", "#N/A"], ["参照", "#REF!"]]).save(path)
    with pytest.raises(DataError) as refusal:
        texts(path)
    assert "a.xlsx:4" in refusal.value.en
    assert "a.xlsx:5" in refusal.value.en
    assert texts(path, skip_bad_rows=True) == PAIRS


@pytest.mark.parametrize(
    ("value", "form", "expected"),
    [
        (1998, "General", "1998"), (1998.0, "General", "1998"), (2.5, "General", "2.5"), (0.1, "0%", "10%"),
        (0.125, "0.0%", "12.5%"), (1234567, "#,##0", "1,234,567"), (1234.5, "#,##0.00", "1,234.50"),
        (500, '#,##0"円"', "500円"), (500, '"¥"#,##0', "¥500"), (3, "0.00", "3.00"), (1.5, "0.##", "1.5"), (2, "0.##", "2"),
        (7, "000", "007"), (True, "General", "TRUE"), ("文_x000D_\n二", "@", "文\n二"), (None, "General", None),
        (datetime.datetime(2024, 4, 1), "yyyy/m/d", "2024/4/1"),
        (datetime.datetime(2024, 4, 1), 'yyyy"年"m"月"d"日"', "2024年4月1日"),
        (datetime.datetime(2024, 4, 1), "[$-411]ggge\"年\"m\"月\"d\"日\"", "令和6年4月1日"),
        (datetime.datetime(2024, 4, 1, 9, 5), "yyyy/mm/dd hh:mm", "2024/04/01 09:05"),
        (datetime.datetime(2024, 4, 1), "m/d(aaa)", "4/1(月)"),
        (datetime.time(13, 5, 9), "h:mm:ss", "13:05:09"), (datetime.time(13, 5), "h:mm AM/PM", "1:05 PM"),
    ],
)  # fmt: skip
def test_cells_are_what_excel_shows(value: object, form: str, expected: str | None):
    assert shown(SimpleNamespace(value=value, number_format=form)) == expected


JSONL = "".join(json.dumps({"質問": q, "回答": a}, ensure_ascii=False) + "\n" for q, a in ROWS).encode()


def compressed(suffix: str, raw: bytes) -> bytes:
    if suffix == ".zst":
        sink = io.BytesIO()
        with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(raw)
            stream.flush()
            held = sink
            stream.close()
        return held.getvalue() if not held.closed else b""
    return {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[suffix](raw)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path: Path, suffix: str):
    assert suffix in UNPACK
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(compressed(suffix, JSONL))
    assert texts(path) == PAIRS
    path.write_bytes(compressed(suffix, JSONL)[:-9])
    with pytest.raises(DataError, match="damaged"):
        texts(path)


def test_zstandard_is_read(tmp_path: Path):
    path = tmp_path / "a.jsonl.zst"
    with pyarrow.OSFile(str(path), "wb") as file, pyarrow.CompressedOutputStream(file, "zstd") as stream:
        stream.write(JSONL)
    assert texts(path) == PAIRS
    path.write_bytes(b"no frame")
    with pytest.raises(DataError, match="Zstandard"):
        texts(path)


def test_a_zip_with_one_table_is_read_and_its_other_files_are_named(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/faq.csv", "質問,回答\n首都は？,東京です。\n")
        archive.writestr("readme.md", "読んでね")
        archive.writestr("__MACOSX/faq.csv", "x")
    assert texts(path) == PAIRS[:1]
    assert any("readme.md" in en for _, en in read_rows(path)[1].notes)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("other.csv", "質問,回答\nあ,い\n")
    with pytest.raises(DataError, match=r"other\.csv"):
        texts(path)


@pytest.mark.parametrize("kind", [".arrow", ".feather"])
def test_arrow_files_are_read(tmp_path: Path, kind: str):
    from pyarrow import feather

    table = pyarrow.Table.from_pylist([{"質問": q, "回答": a} for q, a in ROWS])
    path = tmp_path / f"a{kind}"
    if kind == ".feather":
        feather.write_feather(table, str(path))
    else:
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    assert texts(path) == PAIRS


def test_a_folder_of_files_is_read_and_other_splits_are_named(tmp_path: Path):
    for name in ("train-1.jsonl", "train-2.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes(JSONL)
    (tmp_path / "README.md").write_text("説明", encoding="utf-8")
    assert texts(tmp_path) == PAIRS * 2
    text = "\n".join(read_rows(tmp_path)[1].lines())
    assert "test.jsonl (2 rows)" in text
    assert "README.md" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no file that can be read"):
        texts(empty)


def test_splits_of_a_saved_dataset_are_named(tmp_path: Path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"質問": q, "回答": a} for q, a in ROWS])
    DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "both")
    assert "split not read: test (2 rows)" in "\n".join(read_rows(tmp_path / "both")[1].lines())
    DatasetDict(test=rows).save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match="one/test"):
        read_rows(tmp_path / "one")
    assert texts(tmp_path / "one" / "test") == PAIRS


Q, A = ROWS[0]
SHAPES = [
    ("an array in .jsonl", "a.jsonl", json.dumps([{"質問": Q, "回答": A}]), "one JSON value"),
    ("a pretty object in .jsonl", "a.jsonl", json.dumps({"質問": Q, "回答": A}, indent=2), "one JSON value"),
    ("by columns", "a.json", json.dumps({"質問": {"0": Q}, "回答": {"0": A}}), "by columns"),
    ("by index", "a.json", json.dumps({"0": {"質問": Q, "回答": A}}), "index"),
    ("split", "a.json", json.dumps({"columns": ["質問", "回答"], "index": [0], "data": [[Q, A]]}), "split"),
    ("table", "a.json", json.dumps({"schema": {}, "data": [{"index": 0, "質問": Q, "回答": A}]}), ""),
    ("lists", "a.json", json.dumps({"質問": [Q], "回答": [A]}), "list for each column"),
    ("examples", "a.json", json.dumps({"version": 1, "examples": [{"質問": Q, "回答": A}]}), ""),
    ("two splits", "a.json", json.dumps({"train": [{"質問": Q, "回答": A}], "test": [{}, {}]}), "test (2 rows)"),
    ("one object", "a.json", json.dumps({"質問": Q, "回答": A}), ""),
    ("a mark", "a.jsonl", "\ufeff" + json.dumps({"質問": Q, "回答": A}), ""),
]


@pytest.mark.parametrize(("name", "content", "note"), [item[1:] for item in SHAPES], ids=[item[0] for item in SHAPES])
def test_json_as_programs_write_it(tmp_path: Path, name: str, content: str, note: str):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert texts(path) == [[Q, A]]
    assert note in "\n".join(read_rows(path)[1].lines())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", '[{"質問": "a", "回答": "b"},]', "a comma too many"),
        ("a.jsonl", '{"質問": "a", "回答": "b",}', "a comma too many"),
        ("a.jsonl", '["質問", "回答"]\n["a", "b"]\n', "a list"),
        ("a.json", json.dumps({"data": [{"title": "t", "paragraphs": []}]}), "SQuAD"),
        ("a.json", json.dumps({"a": [{"x": 1}], "b": [{"y": 1}]}), "2 arrays"),
        ("a.json", json.dumps({"columns": ["質問", "回答"], "data": [["a"]]}), "2 values"),
        ("a.json", "[" * 100000, "nested too deeply"),
        ("a.json", '{"質問": "a", "質問": "b"}', "stands twice"),
        ("a.jsonl", "1" * 5000, "not valid JSON"),
        ("a.xls", "x", "Save it as .xlsx"),
        ("a.pkl", "x", "Pickles"),
    ],
)
def test_json_and_kinds_that_cannot_be_read_are_refused_by_shape(tmp_path: Path, name: str, content: str, reason: str):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as refusal:
        texts(path)
    assert reason in refusal.value.en


def test_a_text_is_no_heading_however_long_it_is():
    """A first line of 50 MB costs no search in it; what is short with remarks behind it is one still."""
    before = time.process_time()
    assert role_of("質問（" * 10_000_000) is None
    assert time.process_time() - before < 1
    assert role_of("質問（" + "お客様の言葉のまま、" * 50 + "）") == ("instruction", False)
