"""Files of questions: which column asks, where rows stand, and what else is in them."""

from __future__ import annotations

import json
from pathlib import Path

import openpyxl
import pytest

from ai_finetuning.errors import ConfigError, DataError, InputNotFoundError
from ai_finetuning.inference.question_files import Questions, headings_of, read_questions


def read(folder: Path, content: str | bytes, name: str = "q.csv", **more: str) -> Questions:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_questions(path, **more)


@pytest.mark.parametrize(
    ("headings", "column"),
    [
        ("No,お問い合わせ,ご回答", "お問い合わせ"),
        ("question,answer", "question"),
        ("ご質問,分類", "ご質問"),
        ("顧客,回答", "顧客"),
        ("prompt,ユーザー", "prompt"),  # what names a speaker only gives way
    ],
)
def test_the_column_is_found_by_its_heading(headings: str, column: str, tmp_path: Path):
    assert read(tmp_path, f"{headings}\na,b,c\n").column == column


def test_a_named_column_is_taken_as_it_is_written(tmp_path: Path):
    assert read(tmp_path, "質問,本文\na,b\n", column="本文").questions[0].text == "b"
    assert read(tmp_path, "質問,ＦＡＱ\na,b\n", column="faq").column == "ＦＡＱ"


def test_rows_above_the_heading_blank_rows_and_line_numbers(tmp_path: Path):
    obtained = read(tmp_path, '社内FAQ\n2026年版\n質問,備考\n"a\nb",x\n\n,y\nc\n')
    assert obtained.above == [["社内FAQ"], ["2026年版"]]
    assert [(item.number, item.text) for item in obtained.questions] == [(4, "a\nb"), (7, ""), (8, "c")]
    assert obtained.rows[1] == []


@pytest.mark.parametrize(
    ("raw", "encoding", "delimiter", "line_end"),
    [
        ("質問,備考\r\n①,x\r\n".encode("cp932"), "cp932", ",", "\r\n"),
        ("質問;備考\na;x\n".encode(), "utf-8", ";", "\n"),
        ("質問\t備考\na\tx\n".encode("utf-16"), "utf-16", "\t", "\n"),
        ("質問,備考\na,x\n".encode("utf-8-sig"), "utf-8-sig", ",", "\n"),
        ("質問,備考\r\nあ,x\r\n".encode("iso2022_jp"), "iso2022_jp", ",", "\r\n"),
        ("番号|質問\n1|こんにちは、お元気ですか\n".encode("euc_jp"), "euc_jp", "|", "\n"),
    ],
)
def test_encoding_delimiter_and_line_ends_are_noted(raw: bytes, encoding: str, delimiter: str, line_end: str, tmp_path):
    obtained = read(tmp_path, raw)
    assert (obtained.encoding, obtained.delimiter, obtained.line_end) == (encoding, delimiter, line_end)


def test_material_and_system_columns_are_used_as_in_training(tmp_path: Path):
    (question,) = read(tmp_path, "質問,文脈,システム\n要約して,長い文,短く。\n").questions
    assert (question.text, question.material, question.system) == ("要約して", "長い文", "短く。")
    with pytest.raises(DataError, match="all mean input"):
        read(tmp_path, "質問,文脈,背景\na,b,c\n")


def test_bytes_that_cannot_be_read_are_of_their_row(tmp_path: Path):
    rows = "".join(f"{number}番目の質問です。,備考\n" for number in range(400)).encode()
    obtained = read(tmp_path, "質問,備考\n".encode() + rows + b"\xe3\x81,x\n")
    assert [item.number for item in obtained.questions if item.unreadable] == [402]


def test_the_sheet_is_the_visible_one_that_asks(tmp_path: Path):
    book = openpyxl.Workbook()
    book.active.append(["表紙"])
    hidden = book.create_sheet("旧")
    hidden.append(["質問"])
    hidden.append(["古い"])
    hidden.sheet_state = "hidden"
    sheet = book.create_sheet("FAQ")
    sheet.append(["質問", "年"])
    sheet.append([1998, 0.1])
    book.save(tmp_path / "q.xlsx")
    obtained = read_questions(tmp_path / "q.xlsx")
    assert (obtained.sheet, obtained.questions[0].text) == ("FAQ", "1998")
    assert obtained.others == ["Sheet", "旧"]
    assert read_questions(tmp_path / "q.xlsx", sheet="旧").questions[0].text == "古い"
    with pytest.raises(ConfigError, match="has no sheet 新"):
        read_questions(tmp_path / "q.xlsx", sheet="新")


def test_a_table_in_the_middle_of_a_sheet_is_found_by_its_row_numbers(tmp_path: Path):
    book = openpyxl.Workbook()
    book.active["B3"], book.active["C3"] = "番号", "質問"
    book.active["C5"] = "ここは何行目ですか"
    book.save(tmp_path / "q.xlsx")
    (question,) = read_questions(tmp_path / "q.xlsx").questions
    assert (question.number, question.text) == (5, "ここは何行目ですか")


def test_json_lines(tmp_path: Path):
    rows = [{"question": "a", "tags": ["x"]}, {"question": None}, {"id": 3, "question": "c"}]
    obtained = read(tmp_path, "".join(json.dumps(row) + "\n\n" for row in rows), "q.jsonl")
    assert obtained.headings == ["question", "tags", "id"]
    assert [(item.number, item.text) for item in obtained.questions] == [(1, "a"), (3, ""), (5, "c")]
    assert [item.number for item in obtained.filled("tags")] == [1]
    with pytest.raises(DataError, match=r"q\.jsonl:2: not a JSON object"):
        read(tmp_path, '{"question": "a"}\n["b"]\n', "q.jsonl")


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "q.csv", "no column is known to ask"),
        (b"a,b\n1,2\n", "q.csv", "columns: a, b"),
        (b"question\n", "q.csv", "no row with a question"),
        (b'question\n"a\n', "q.csv", "not valid CSV"),
        (b"no workbook", "q.xlsx", "is not valid Excel"),
        (b"", "q.jsonl", "no column is known to ask"),
        (b"q", "q.txt", "not .txt"),
        (b"q", "q.xls", "older Excel files as .xlsx"),
    ],
)
def test_what_is_no_file_of_questions_is_refused(content: bytes, name: str, said: str, tmp_path: Path):
    with pytest.raises(DataError, match=said):
        read(tmp_path, content, name)
    with pytest.raises(InputNotFoundError):
        read_questions(tmp_path / "none.csv")


def test_headings_are_known_of_a_file_of_which_nobody_knows_what_asks(tmp_path: Path):
    file = tmp_path / "list.csv"
    file.write_text("番号,いち,に\n1,a,b\n", encoding="cp932")
    with pytest.raises(DataError):
        read_questions(file)
    assert headings_of(file) == ["番号", "いち", "に"]
    file.write_text("質問,question\na,b\n", encoding="cp932")
    assert headings_of(file) == ["質問", "question"]
    with pytest.raises(InputNotFoundError):
        headings_of(tmp_path / "none.csv")


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_the_columns_of_a_refusal_are_those_of_its_delimiter(mark: str, tmp_path: Path):
    file = tmp_path / "list.csv"
    file.write_text(f"番号{mark}件名\n1{mark}届きません\n", encoding="utf-8")
    assert headings_of(file) == ["番号", "件名"]
    with pytest.raises(ConfigError, match=r"番号, 件名"):
        read_questions(file, column="問い")
