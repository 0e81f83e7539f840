"""Rows that cannot be used: refused in one list, or left out and counted, for files and for rows from anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.data.bad_rows import LISTED, NAMED, BadRow, BadRows
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError

GOOD = {"instruction": "一の次は？", "output": "二です。"}


def rows_file(folder: Path) -> Path:
    lines = [json.dumps(GOOD, ensure_ascii=False), "{", json.dumps(GOOD | {"output": ""}, ensure_ascii=False)]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize(("language", "reasons"), [("ja", ("読めません", "空です")), ("en", ("not valid", "is empty"))])
def test_reasons_are_in_the_language_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, reasons: tuple[str, str]
):
    """Those of the file's reader and those of what stands in a row."""
    monkeypatch.setenv("AIFT_LANG", language)
    samples, report = load_samples(rows_file(tmp_path), skip_bad_rows=True)
    assert len(samples) == 1
    lines = report.bad.lines()
    assert reasons[0] in lines[1]
    assert reasons[1] in lines[2]


def test_all_bad_rows_are_refused_in_one_list(tmp_path: Path):
    path = rows_file(tmp_path)
    with pytest.raises(DataError) as refusal:
        load_samples(path)
    for text in (refusal.value.ja, refusal.value.en):
        assert f"{path}:2" in text
        assert f"{path}:3" in text
        assert "data.skip_bad_rows=true" in text


def test_one_bad_row_is_one_sentence():
    bad = BadRows()
    bad.add(BadRow("壊れています", "broken"), "x:1")
    with pytest.raises(DataError, match=r"x:1: broken\. Fix the row"):
        bad.refuse()


def test_equal_reasons_share_a_line_and_long_lists_are_cut():
    bad = BadRows()
    for number in range(NAMED + 5):
        bad.add(BadRow("壊れています", "broken"), f"x:{number}")
    assert bad.listed()[0][1] == "x:0, x:1, x:2 and 5 more: broken"
    for number in range(LISTED):
        bad.add(BadRow(f"{number}", f"{number}"), f"y:{number}")
    assert bad.listed()[-1][1] == "and 1 more rows"
    assert len(bad) == NAMED + 5 + LISTED
