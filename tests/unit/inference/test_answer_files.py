"""Answers beside their questions: nothing else changes, and no answer becomes a formula."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import openpyxl
import pytest

from ai_finetuning.errors import ConfigError, InputNotFoundError
from ai_finetuning.inference.answer_files import (
    no_formula,
    validate_target,
    with_formulas,
    without_formulas,
    write_answers,
)
from ai_finetuning.inference.question_files import Questions, read_questions

HOSTILE = ['=HYPERLINK("http://evil.example")', "+1", "-1+1", "@SUM(A1)", "\tx", "\rx", "＝1+1", "普通の回答"]


def questions(folder: Path, *, encoding: str = "cp932", rows: int = len(HOSTILE)) -> Questions:
    path = folder / "q.csv"
    text = "No,質問\r\n" + "".join(f"{number},問{number}\r\n" for number in range(rows))
    path.write_bytes(text.encode(encoding))
    return read_questions(path)


def written(folder: Path, name: str, read: Questions, answers: list[str]) -> Path:
    kind = validate_target(folder / name, read, ["回答"], overwrite=False)
    write_answers(folder / name, kind, read, ["回答"], [[text] for text in answers])
    return folder / name


def test_no_answer_is_a_formula_in_csv(tmp_path: Path, logged):
    path = written(tmp_path, "a.csv", questions(tmp_path), HOSTILE)
    table = list(csv.reader(io.StringIO(path.read_bytes().decode("cp932"), newline="")))
    assert [row[2] for row in table[1:]] == ["'" + text for text in HOSTILE[:-1]] + HOSTILE[-1:]
    assert "7 answers begin with = + - @" in logged()
    assert no_formula("") == ""


def test_no_answer_is_a_formula_in_a_workbook(tmp_path: Path):
    path = written(tmp_path, "a.xlsx", questions(tmp_path), HOSTILE)
    sheet = openpyxl.load_workbook(path).active
    for row, text in enumerate(HOSTILE, start=2):
        cell = sheet.cell(row, 3)
        assert cell.data_type == "s"
        assert cell.value == text.replace("\r", "\n")  # what XML makes of it
        assert bool(cell.quotePrefix) == (text != HOSTILE[-1])
    # Written into a workbook that was there, too.
    book = openpyxl.Workbook()
    book.active.append(["質問"])
    book.active.append(["a"])
    book.save(tmp_path / "b.xlsx")
    read = read_questions(tmp_path / "b.xlsx")
    write_answers(tmp_path / "c.xlsx", ".xlsx", read, ["回答"], [["=1+1\x07"]])
    cell = openpyxl.load_workbook(tmp_path / "c.xlsx").active["B2"]
    assert (cell.value, cell.data_type) == ("=1+1\ufffd", "s")


def test_a_character_that_the_encoding_lacks_is_named(tmp_path: Path, logged):
    path = written(tmp_path, "a.csv", questions(tmp_path, rows=1), ["寿司🍣です"])
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    assert "🍣" in path.read_text(encoding="utf-8-sig")
    assert "(U+1F363) of an answer is not in cp932; writing UTF-8 with BOM" in logged()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "euc_jp", "cp932", "iso2022_jp"])
def test_the_encoding_of_the_questions_is_kept(encoding: str, tmp_path: Path):
    path = tmp_path / "q.csv"
    path.write_bytes("質問,備考\nあいうえおは何行ですか,ひらがなです\n".encode(encoding))
    written(tmp_path, "a.csv", read_questions(path), ["あ行です"])
    assert (tmp_path / "a.csv").read_bytes() == (
        "質問,備考,回答\nあいうえおは何行ですか,ひらがなです,あ行です\n".encode(encoding)
    )


def test_ragged_rows_rows_above_and_blank_rows_stay(tmp_path: Path):
    path = tmp_path / "q.csv"
    path.write_text("表題\n質問,備考\na\n\nb,x,余り\n", encoding="utf-8")
    written(tmp_path, "a.csv", read_questions(path), ["一", "二"])
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "表題\n質問,備考,,回答\na,,,一\n\nb,x,余り,二\n"


def test_other_kinds_of_file(tmp_path: Path):
    read = questions(tmp_path, rows=2)
    rows = written(tmp_path, "a.jsonl", read, ["=1", "二"]).read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[0]) == {"No": "0", "質問": "問0", "回答": "=1"}  # no spreadsheet reads it
    tabs = written(tmp_path, "a.tsv", read, ["一", "二"]).read_bytes().decode("cp932")
    assert tabs == "No\t質問\t回答\r\n0\t問0\t一\r\n1\t問1\t二\r\n"
    objects = tmp_path / "o.jsonl"
    objects.write_text('{"question": "a", "n": 1}\n{"question": "b", "t": ["x"]}\n', encoding="utf-8")
    table = written(tmp_path, "o.csv", read_questions(objects), ["一", "二"]).read_text(encoding="utf-8-sig")
    assert table == 'question,n,t,回答\na,1,,一\nb,,"[""x""]",二\n'


def test_an_answer_beyond_a_cell_is_said(tmp_path: Path, logged):
    path = written(tmp_path, "a.xlsx", questions(tmp_path, rows=1), ["あ" * 40_000])
    assert len(openpyxl.load_workbook(path).active["C2"].value) == 32_767
    assert "40,000 characters are more than the 32,767" in logged()


def test_targets_that_cannot_be(tmp_path: Path):
    read = questions(tmp_path, rows=1)
    for name, said in (("a.txt", "must end in"), ("q.csv", "the file itself that is read"), ("sub.csv", "a folder or")):
        (tmp_path / "sub.csv").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=said):
            validate_target(tmp_path / name, read, ["回答"], overwrite=True)
    with pytest.raises(InputNotFoundError):
        validate_target(tmp_path / "none" / "a.csv", read, ["回答"], overwrite=False)
    with pytest.raises(ConfigError, match="the column No"):
        validate_target(tmp_path / "a.csv", read, ["ＮＯ"], overwrite=False)
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ConfigError, match="--overwrite"):
        validate_target(tmp_path / "a.csv", read, ["回答"], overwrite=False)
    assert validate_target(tmp_path / "a.csv", read, ["回答"], overwrite=True) == ".csv"


def test_a_copy_for_spreadsheets_has_no_formula_and_is_else_the_same(tmp_path: Path):
    file = tmp_path / "asked.tsv"
    rows = ["表\t", "質問\t備考", "首都は？\t=1+1", "-5\t+81-3-1", '改行\t"a\n@b"', "人口は？\t＝合計"]
    file.write_bytes("\r\n".join([*rows, ""]).encode("cp932"))
    copy = without_formulas(read_questions(file)).decode("cp932")
    assert copy == "\r\n".join(
        ["表\t", "質問\t備考", "首都は？\t'=1+1", "-5\t'+81-3-1", '改行\t"a\n@b"', "人口は？\t'＝合計", ""]
    )
    assert [with_formulas(text) for text in ("'=1+1", "'引用'", "-5")] == ["=1+1", "'引用'", "-5"]
