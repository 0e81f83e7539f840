"""What first figures are computed from: rows, characters, and what such rows teach."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ai_finetuning.data.glance import glance
from ai_finetuning.errors import DataError


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_rows_characters_and_bad_rows_are_counted(tmp_path: Path):
    file = tmp_path / "faq.csv"
    file.write_text("質問,回答\n営業時間は？,9時からです。\n休みは？,日曜です。\n場所は？,\n", encoding="cp932")
    found = glance(str(file))
    assert found.rows is not None
    assert (found.rows[0], found.bad, found.objective, found.read_whole) == (2, 1, "sft", True)
    assert found.rows[1] == len("営業時間は？9時からです。休みは？日曜です。")
    file.write_text("質問,回答\n営業時間は？,9時からです。\n", encoding="utf-8")
    again = glance(str(file))
    assert again.rows is not None
    assert again.rows[0] == 1


@pytest.mark.parametrize(
    ("row", "objective"),
    [
        ({"prompt": "こんにちは", "chosen": "はい。", "rejected": "いいえ。"}, "preference"),
        ({"prompt": "こんにちは", "completion": "はい。", "label": True}, "kto"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "sft"),
        ({"text": "ただの文章です。"}, "sft"),
    ],
)
def test_the_objective_is_offered_that_the_rows_fit(tmp_path: Path, row: dict[str, object], objective: str):
    assert glance(lines(tmp_path / "data.jsonl", [row] * 3)).objective == objective


def test_a_large_file_is_told_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ai_finetuning.data.glance._MOST", 4096)
    rows = [{"instruction": f"質問 {number:04}", "output": "回答です。"} for number in range(1000)]
    found = glance(lines(tmp_path / "large.jsonl", rows))
    assert not found.read_whole
    assert found.rows is not None
    assert abs(found.rows[0] - 1000) < 50
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'odd.jsonl'}")):
        glance(lines(tmp_path / "odd.jsonl", [{"foo": number, "bar": 2} for number in range(1000)]))
    (tmp_path / "large.xlsx").write_bytes(b"x" * 5000)
    assert glance(str(tmp_path / "large.xlsx")).rows is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp932", "utf-16", "iso2022_jp"])
def test_the_beginning_ends_with_a_row_in_every_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
):
    """Neither in a character, nor in a cell of several lines."""
    row = '"{:04} 番の質問\r\nです","一行目。\r\n二行目。\r\n""三行目""。"\r\n'
    text = "質問,回答\r\n" + "".join(map(row.format, range(1000)))
    file = tmp_path / "large.csv"
    file.write_bytes(text.encode(encoding))
    for most in range(4096, 4096 + 2 * len(row.format(0).encode("utf-8")), 7):
        monkeypatch.setattr("ai_finetuning.data.glance._MOST", most)
        found = glance(str(file))
        assert found.rows is not None
        assert abs(found.rows[0] - 1000) < 50
        assert found.bad == 0


def test_what_ships_needs_no_file_and_nonsense_is_refused(tmp_path: Path):
    assert glance("embedded:kotoha-qa").rows is not None
    with pytest.raises(DataError):
        glance(lines(tmp_path / "odd.jsonl", [{"foo": 1, "bar": 2}]))
