"""A file's rows a page at a time: any page at once, those of a finding, and the same findings as the doctor's."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.support.commands import call

from ai_finetuning.data.doctor.examination import examine
from ai_finetuning.data.doctor.report import as_json
from ai_finetuning.data.doctor.table import write_table
from ai_finetuning.data.paged import FOUND, PAGE, SUMMARY, Paged


def table_of(folder: Path, file: Path, **options: Any) -> Paged:
    folder.mkdir()
    write_table(file, folder, **options)
    return Paged(folder)


def numbers(table: Paged, key: str) -> list[int]:
    return [row["number"] for row in table.rows(0, PAGE, key)]


def filters(table: Paged) -> dict[str, int]:
    return {item["key"]: item["rows"] for item in table.summary["filters"]}


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    rows = [[f"{name}の営業時間は何時までですか。", f"{name}は平日の夕方、{hour} 時まで営業しています。"] for name, hour in
            [("本店", 17), ("図書館", 19), ("市民課", 18), ("港の売店", 16), ("体育館", 21), ("水族館", 20)]]  # fmt: skip
    rows[1][1] = ""
    rows[2][0] = ""
    rows[4] = list(rows[3])
    rows[5][1] = "受付の携帯 080-5512-3478 に電話してください。"
    rows.append(
        [
            "規則を教えてください。",
            "".join(random.Random(0).choices("春夏秋冬朝昼夜山川海空雲雨雪風花鳥月星", k=900)) + "です。",
        ]
    )
    out = io.StringIO()
    csv.writer(out).writerows([["お問い合わせ", "ご回答", "店"], *([*row, "x"] for row in rows)])
    path = tmp_path / "faq.csv"
    path.write_bytes(out.getvalue().encode("cp932"))
    return path


def test_what_was_read_and_the_rows_of_each_finding(faq: Path, tmp_path: Path):
    table = table_of(tmp_path / "t", faq)
    told = table.summary
    assert (told["kind"], told["encoding"], told["rows"], told["form"]) == ("csv", "cp932", 7, "conversation")
    assert told["columns"] == ["お問い合わせ", "ご回答", "店"]
    assert told["roles"] == {"instruction": "お問い合わせ", "output": "ご回答"}
    assert numbers(table, "empty") == [2, 3]
    assert numbers(table, "near_duplicate") == [5]
    assert numbers(table, "personal") == [6]
    assert numbers(table, "long") == [7]
    for key, count in filters(table).items():
        assert table.matching(key) == count == len(numbers(table, key))
    blank = table.rows(1, 1)[0]
    assert blank["line"] == "3"
    assert [role for role, *_ in blank["texts"]] == ["question"]
    assert blank["refused"][0] == "ご回答 が空です"
    phone = table.rows(5, 1)[0]
    [span] = phone["texts"][1][2]
    assert phone["texts"][1][1][slice(*span)] == "080-5512-3478"
    assert phone["found"] == ["mobile"]


def test_columns_that_are_swapped_swap_the_texts(faq: Path, tmp_path: Path):
    table = table_of(tmp_path / "t", faq, columns={"instruction": "ご回答", "output": "お問い合わせ"})
    assert table.summary["roles"] == {"instruction": "ご回答", "output": "お問い合わせ"}
    first = {role: said for role, said, _ in table.rows(0, 1)[0]["texts"]}
    assert first["answer"] == "本店の営業時間は何時までですか。"


def test_its_findings_are_those_of_the_doctor(faq: Path, tmp_path: Path):
    table, report = table_of(tmp_path / "t", faq), as_json(examine(faq))
    by_rule = {key: {hit["row"] for hit in rule["hits"]} for key, rule in report["rules"].items() if rule["hits"]}
    assert by_rule.pop("unreadable") == set(numbers(table, "empty"))
    assert by_rule.pop("mobile") == set(numbers(table, "personal"))
    assert by_rule == {key: set(numbers(table, key)) for key in by_rule}


def test_pairs_and_marks_are_told(tmp_path: Path):
    pairs = [{"prompt": "首都は？", "chosen": "東京です。", "rejected": "京都です。"}] * 2
    marks = [
        {"prompt": "首都は？", "completion": "東京です。", "label": True},
        {"prompt": "首都は？", "completion": "京都です。", "label": False},
    ]
    for name, rows in (("pairs", pairs), ("marks", marks)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = table_of(tmp_path / "p", tmp_path / "pairs.jsonl")
    assert table.summary["form"] == "pair"
    assert table.summary["roles"] == {"instruction": "prompt", "chosen": "chosen", "rejected": "rejected"}
    assert [role for role, *_ in table.rows(0, 1)[0]["texts"]] == ["question", "answer", "rejected"]
    table = table_of(tmp_path / "m", tmp_path / "marks.jsonl")
    assert table.summary["form"] == "marked"
    assert [row["mark"] for row in table.rows(0, 2)] == ["good", "bad"]


def test_the_sheet_behind_a_cover_is_chosen_and_named(tmp_path: Path):
    import openpyxl

    book = openpyxl.Workbook()
    book.active.title = "表紙"
    book.active["A1"] = "社外秘"
    sheet = book.create_sheet("FAQ")
    for row in (["質問", "回答"], ["首都は？", "東京です。"], ["県の数は？", "47 です。"]):
        sheet.append(row)
    book.save(tmp_path / "a.xlsx")
    told = table_of(tmp_path / "t", tmp_path / "a.xlsx").summary
    assert (told["sheet"], told["rows"], told["encoding"]) == ("FAQ", 2, None)
    assert told["sheets"] == [["表紙", 1, False], ["FAQ", 2, True]]


def test_any_of_many_pages_is_two_reads(tmp_path: Path):
    rng = random.Random(2)
    texts = ["".join(chr(rng.randrange(0x4E00, 0x8000)) for _ in range(24)) for _ in range(20_000)]
    file = tmp_path / "many.jsonl"
    rows = ({"instruction": texts[2 * index], "output": texts[2 * index + 1]} for index in range(10_000))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "t"
    folder.mkdir()
    write_table(file, folder)
    before = time.process_time()
    table = Paged(folder)
    last = table.rows(9_900, PAGE)
    assert time.process_time() - before < 0.1  # of 0.3 s that a person may wait for the last page
    assert [row["number"] for row in last] == list(range(9_901, 10_001))
    assert last[-1]["values"]["output"] == texts[-1]
    assert table.rows(10_000, PAGE) == []


def test_what_is_damaged_is_no_table(faq: Path, tmp_path: Path):
    table_of(tmp_path / "t", faq)
    (tmp_path / "t" / FOUND).write_bytes(b"")
    with pytest.raises(ValueError):
        Paged(tmp_path / "t").rows(0, 10, "empty")
    (tmp_path / "t" / SUMMARY).write_text('{"format": 0}')
    with pytest.raises(ValueError):
        Paged(tmp_path / "t")
    with pytest.raises(OSError):
        Paged(tmp_path / "none")


def test_a_table_of_mail_is_examined_as_any_other(faq: Path, tmp_path: Path):
    text = faq.read_bytes().decode("cp932")
    faq.write_bytes(text.encode("iso2022_jp"))
    told = table_of(tmp_path / "t", faq).summary
    assert (told["encoding"], told["rows"], told["columns"][0]) == ("iso2022_jp", 7, "お問い合わせ")


def test_the_command_writes_the_folder_and_json_alone(faq: Path, tmp_path: Path):
    out = tmp_path / "t"  # in a process of its own: it bounds itself
    command = [sys.executable, "-m", "ai_finetuning", "data", "table", str(faq), "--out", str(out)]
    done = subprocess.run([*command, "--json", "-"], capture_output=True, check=True)
    assert json.loads(done.stdout) == Paged(out).summary
    assert subprocess.run(command, capture_output=True, check=False).returncode == 74  # it is there already


@pytest.mark.parametrize("name", ["none.csv", "none.xlsx"])
def test_a_file_that_is_not_there_is_said_to_be_missing(name: str, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "ai_finetuning",
        "data",
        "table",
        str(tmp_path / name),
        "--out",
        str(tmp_path / "t"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 66
    assert name in done.stderr


def test_the_repair_leaves_out_rows_that_cannot_be_trained_on(faq: Path, tmp_path: Path):
    out = tmp_path / "repaired.jsonl"
    call("data", "doctor", str(faq), "--fix", "all", "--mask", "--out", str(out))
    table = table_of(tmp_path / "t", out)
    assert filters(table).keys() <= {"long"}
    assert len(table) == 4
    assert "090-0000-0000" in out.read_text("utf-8")
