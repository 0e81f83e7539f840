"""Tables and texts as people have them: titles above the heading, other delimiters, workbooks, archives, folders."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import json
import lzma
import re
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import openpyxl
import pyarrow
import pytest

from ai_finetuning.data.cell_formats import NUMBERED
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


def test_what_excel_hides_or_alone_knows_of_a_sheet_is_said(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    book = book_of(FAQ=[["質問", "回答", "数"], [*PAIRS[0], "=1+1"], PAIRS[1]])
    book["FAQ"].row_dimensions[3].hidden = True
    book.save(path)
    assert texts(path) == PAIRS
    assert "rows that Excel hides, by a filter too, are read as well: 1" in notes(path)
    assert "whose value is not in the file are empty: 1" in notes(path)


def test_a_workbook_with_a_password_is_named_as_that(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    path.write_bytes(bytes.fromhex("D0CF11E0A1B11AE1") + bytes(600))
    with pytest.raises(DataError, match="without a password"):
        texts(path)


def notes(path: Path) -> str:
    return " ".join(en for _, en in read_rows(path)[1].notes)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_heading_that_comes_again_is_no_question(tmp_path: Path, mark: str):
    path = csv_file(tmp_path, "質問,回答,", "首都は？,東京です。", f"{mark}質問,回答", "人口は？,一千四百万人です。,")
    assert texts(path) == PAIRS
    assert "repeat the heading, not read: 1 (line 3)" in notes(path)
    book = tmp_path / "a.xlsx"
    book_of(FAQ=[["質問", "回答"], PAIRS[0], ["質問", "回答"], PAIRS[1]]).save(book)
    assert texts(book) == PAIRS
    one = csv_file(tmp_path, "text", "text", "文", name="one.csv")
    assert len(read_rows(one)[0]) == 2


def test_a_row_of_merged_cells_above_the_heading_names_groups(tmp_path: Path):
    path = tmp_path / "a.xlsx"
    rows = [[question, "4/1", answer, "山田"] for question, answer in PAIRS]
    book_of(FAQ=[["お問い合わせ", None, "対応", None], ["質問", "日付", "回答", "担当"], *rows]).save(path)
    assert texts(path) == PAIRS
    assert "rows above the heading (line 2)" in notes(path)


def test_quotes_behind_a_blank_are_no_text(tmp_path: Path):
    path = csv_file(tmp_path, "質問, 回答", '"送料は？", "五百円,です。"', '返品は？, "七日"')
    assert texts(path) == [["送料は？", "五百円,です。"], ["返品は？", "七日"]]
    assert "blanks behind a delimiter" in notes(path)
    path = csv_file(tmp_path, "質問,回答", *["問,答"] * 25, '返品は？, "七日"', name="late.csv")
    with pytest.raises(DataError, match=r"late.csv:27.*remove the blank"):
        texts(path)
    assert texts(csv_file(tmp_path, "質問,回答", '彼は？, "はい"と言う')) == [["彼は？", ' "はい"と言う']]


def test_a_number_kept_as_text_by_a_formula_is_what_excel_shows(tmp_path: Path):
    assert texts(csv_file(tmp_path, "質問,回答", '電話は？,"=""0120"""', '番号は？,="012"')) == [
        ["電話は？", "0120"],
        ["番号は？", "012"],
    ]


@pytest.mark.parametrize("mark", ["\t", ","])
def test_a_text_that_begins_with_a_heading_is_a_table(tmp_path: Path, mark: str):
    path = tmp_path / "a.txt"
    path.write_text("\n".join(mark.join(row) for row in (["質問", "回答"], *PAIRS)), encoding="cp932")
    assert texts(path) == PAIRS
    assert "read as a table" in notes(path)


def test_a_text_of_objects_is_json_lines_and_prose_stays_prose(tmp_path: Path):
    path = tmp_path / "a.txt"
    path.write_bytes(JSONL)
    assert texts(path) == PAIRS
    assert "read as JSON Lines" in notes(path)
    for prose in ("Text, images and sounds\n文", "本文、まとめ\n文", '{"a": 1}\n文', "質問\n回答"):
        path.write_text(prose, encoding="utf-8")
        assert [row.values["text"] for row in read_rows(path)[0]] == prose.split("\n")


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
        (2.5, "0", "3"), (0.285, "0%", "29%"), (1.005, "0.00", "1.01"), (-1234.5, '"¥"#,##0', "-¥1,235"),
        (1234567, '#,##0,"千円"', "1,235千円"), (1234567890, '0.0,,"百万円"', "1234.6百万円"), (5, 'General"円"', "5円"),
        (600000, r"000\-0000", "060-0000"), (600000, r"[<=999]000;[<=9999]000\-00;000\-0000", "060-0000"),
        (312345678, r"[<=99999999]####\-####;\(00\)\ ####\-####", "(03) 1234-5678"), (0, '#,##0;-#,##0;"なし"', "なし"),
        (-5, '#,##0;"▲"#,##0', "▲5"), (-5, r"#,##0;[Red]\(#,##0\)", "(5)"), (1234.5, "0.00E+00", "1.23E+03"),
        (0.5, "# ?/?", "1/2"), (1.25, "# ??/??", "1 1/4"), (1234567, "[$¥-411]#,##0", "¥1,234,567"), (1e16, "General", "1E+16"),
        (datetime.datetime(2024, 4, 1), "[$-411]ge.m.d;@", "R6.4.1"), (45383, "aaaa", "月曜日"), (45383, '[$-411]gge"年"', "令6年"),
        (datetime.datetime(2019, 6, 1), '[$-ja-JP-x-gannen]ggge"年"m"月"', "令和元年6月"),
        (datetime.datetime(2019, 6, 1), '[<43586]ggge"年";[>=43831]ggge"年";ggg"元年"', "令和元年"),
        (datetime.datetime(2024, 6, 1), '[<43586]ggge"年";[>=43831]ggge"年";ggg"元年"', "令和6年"),
        (datetime.timedelta(hours=26, minutes=3), "[h]:mm", "26:03"), (datetime.timedelta(minutes=90), '[m]"分"', "90分"),
        ("山田", '@"様"', "山田様"), ("一_x000B_二", "@", "一\x0b二"),
    ],
)  # fmt: skip
def test_cells_are_what_excel_shows(value: object, form: str, expected: str | None):
    book = SimpleNamespace(epoch=datetime.datetime(1899, 12, 30))
    cell = SimpleNamespace(value=value, number_format=form, parent=SimpleNamespace(parent=book))
    assert shown(cell) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (14, "2024/4/1"),
        (22, "2024/4/1 0:00"),
        (27, "R6.4.1"),
        (31, "2024年4月1日"),
        (55, "2024年4月"),
        (58, "令和6年4月1日"),
    ],
)
def test_formats_that_a_workbook_names_by_number_are_those_of_a_japanese_excel(
    tmp_path: Path, number: int, expected: str
):
    book = book_of(FAQ=[["質問", "回答"], ["いつ？", datetime.datetime(2024, 4, 1)]])
    book["FAQ"]["B2"].number_format = "yyyy-mm-dd"
    book.save(tmp_path / "a.xlsx")
    path = tmp_path / "b.xlsx"
    with zipfile.ZipFile(tmp_path / "a.xlsx") as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            raw = old.read(item)
            if item.filename == "xl/styles.xml":
                raw = re.sub(rb'(<xf numFmtId=)"1\d\d"', rb'\1"%d"' % number, raw)
            new.writestr(item.filename, raw)
    assert number in NUMBERED
    assert texts(path) == [["いつ？", expected]]


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


def test_names_in_an_archive_are_those_of_windows_and_stay_on_their_line(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("AAAAAAAAAA", "質問,回答\n一,二\n")
        archive.writestr("b\nerror: \x1b[31m.bin", b"")
        for number in range(12):
            archive.writestr(f"{number:02}.bin", b"")
    path.write_bytes(path.read_bytes().replace(b"AAAAAAAAAA", "質問集.csv".encode("cp932")))
    _, report = read_rows(path)
    lines = report.lines()
    assert any("質問集.csv" in line for line in lines)
    assert any("\\nerror: \\x1b" in line and line.endswith("(+3)") for line in lines)
    assert not any("\n" in line for line in lines)


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
