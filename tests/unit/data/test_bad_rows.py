"""Rows that cannot be used: one way to refuse or to count them, for files and for rows from anywhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ai_finetuning.data.bad_rows import KEPT, BadRow, LeftOut
from ai_finetuning.data.sources import load_samples
from ai_finetuning.errors import DataError


@pytest.mark.parametrize(("language", "reasons"), [("ja", ("読めません", "空です")), ("en", ("not valid", "is empty"))])
def test_reasons_are_in_the_language_of_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, language: str, reasons: tuple[str, str]
):
    """Those of the file's reader and those of what stands in a row."""
    monkeypatch.setenv("AIFT_LANG", language)
    good = {"instruction": "一の次は？", "output": "二です。"}
    lines = [json.dumps(good, ensure_ascii=False), "{", json.dumps(good | {"output": ""}, ensure_ascii=False)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    samples, report = load_samples(tmp_path / "rows.jsonl", skip_bad_rows=True)
    assert len(samples) == 1
    assert reasons[0] in report.files[0].reasons[0]
    assert reasons[1] in report.reasons[0]


def test_a_bad_row_ends_the_reading_unless_it_may_be_left_out():
    report = LeftOut()
    with pytest.raises(DataError, match=r"x:1: broken\. Fix the row"):
        report.leave_out(BadRow("壊れています", "broken"), "x:1", False)
    for number in range(KEPT + 5):
        report.leave_out(BadRow("壊れています", "broken"), f"x:{number}", True)
    assert (report.skipped, len(report.reasons)) == (KEPT + 5, KEPT)
