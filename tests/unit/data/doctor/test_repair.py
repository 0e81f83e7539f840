"""Repairs change what they are for and nothing beside it, and every change can be taken back."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ai_finetuning.data.doctor.examination import examine
from ai_finetuning.data.doctor.passages import replaced, sample_of, text_at
from ai_finetuning.data.doctor.repair import Wanted, repair, undo, write
from ai_finetuning.data.doctor.report import lines
from ai_finetuning.data.rows import Row
from ai_finetuning.errors import DataError
from ai_finetuning.japanese.style import Style

TOKYO = "東京です。江戸時代から政治の中心で、いまも多くの省庁と企業の本社が集まっています。"
ROWS: list[dict[str, Any]] = [
    {"id": 1, "instruction": "アバター』の初日は？", "output": "アバター』は2009年12月18日に公開されました。[1]", "score": 0.5},
    {"id": 2, "instruction": "首都は？", "output": TOKYO, "tags": ["a", None, {"b": 1}]},
    {"id": 3, "instruction": "首都は？", "output": "はい" * 60},
    {"id": 4, "messages": [{"role": "user", "content": "⻑野は？"}, {"role": "assistant", "content": "山です。<|im_end|>"}]},
    {"id": 5, "prompt": "首都は？", "chosen": TOKYO.encode().decode("latin-1"), "rejected": "知り\u200bません。"},
    {"id": 6, "messages": json.dumps([{"from": "human", "value": "か\u3099くせい？"}, {"from": "gpt", "value": "はい。"}])},
    {"id": 7, "instruction": "連絡先は？", "output": "電話は090-1234-5678、メールはa@example.comです。"},
    {"id": 8, "instruction": "首都は？", "output": TOKYO},
    {"id": 9, "text": "大きさは\ufffdです"},
]  # fmt: skip


def samples(rows: list[dict[str, Any]]):
    return [sample_of(Row(row, f"a.jsonl:{number}"), number) for number, row in enumerate(rows, start=1)]


def test_the_texts_of_every_kind_of_row_are_seen():
    roles = [[item.role for item in sample.passages] for sample in samples(ROWS)]
    assert roles[0] == ["question", "answer"]
    assert roles[3] == ["question", "answer"]
    assert roles[4] == ["question", "answer", "rejected"]
    assert roles[5] == ["question", "answer"]
    assert roles[8] == ["text"]
    answer = samples(ROWS)[5].passages[1]
    assert (answer.text, answer.question) == ("はい。", "か\u3099くせい？")


@pytest.mark.parametrize(
    ("row", "roles"),
    [
        ({"input": "首都は？", "output": "東京"}, ["question", "answer"]),
        ({"text": "首都は？", "output": "東京"}, ["question", "answer"]),
        ({"instruction": "要約", "input": "材料", "output": "東京", "system": "係"}, ["system", "question", "material", "answer"]),
        ({"instruction": "次は？", "output": "京都", "history": [["首都は？", "東京"]]}, ["question", "answer", "question", "answer"]),
        ({"conversations": [{"human": "首都は？", "assistant": "東京"}]}, ["question", "answer"]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "首都は？"}]}, {"role": "assistant", "content": "東京"}]}, ["question", "answer"]),
        ({"chosen": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "東京"}],
          "rejected": [{"role": "user", "content": "首都は？"}, {"role": "assistant", "content": "大阪"}]}, ["question", "answer", "text", "rejected"]),
        ({"label": 1, "sentence": "良い店"}, ["text"]),
    ],
)  # fmt: skip
def test_roles(row: dict[str, Any], roles: list[str]):
    sample = sample_of(Row(row, "a:1"), 1)
    assert [item.role for item in sample.passages] == roles
    for item in sample.passages:
        assert text_at(row, item.place) == item.text
        assert text_at(replaced(row, item.place, "別"), item.place) == "別"
        assert replaced(row, item.place, item.text) == row or "messages" in row


def test_safe_repairs():
    before = copy.deepcopy(ROWS)
    done = repair(samples(ROWS), Wanted("safe"))
    assert before == ROWS
    rows = {sample.values["id"]: sample.values for sample in done.rows}
    assert rows[1]["instruction"] == "『アバター』の初日は？"
    assert rows[1]["output"] == "『アバター』は2009年12月18日に公開されました。"
    assert rows[1]["score"] == 0.5
    assert rows[2] == ROWS[1]
    assert 3 not in rows
    assert rows[4]["messages"][0]["content"] == "長野は？"
    assert rows[4]["messages"][1]["content"] == "山です。<|im_end|>"
    assert rows[5]["chosen"] == TOKYO
    assert rows[5]["rejected"] == "知りません。"
    assert json.loads(rows[6]["messages"])[0]["value"] == "がくせい？"
    assert rows[7] == ROWS[6]
    assert dict(done.dropped) == {"loop": 1}
    again = repair(done.rows, Wanted("safe"))
    assert (again.changed, again.dropped) == ({}, {})


def test_all_repairs_and_masks():
    done = repair(samples(ROWS), Wanted("all", mask=True))
    rows = {sample.values["id"]: sample.values for sample in done.rows}
    assert rows[4]["messages"][1]["content"] == "山です。"
    assert rows[7]["output"] == "電話は090-0000-0000、メールは[メール]です。"
    # The pair among plain rows is one that their objective cannot learn.
    assert dict(done.dropped) == {"loop": 1, "replacement": 1, "near_duplicate": 1, "unreadable": 1}
    assert not {5, 8} & set(rows)
    assert 2 in rows


def test_masks_alone_drop_nothing_and_repair_nothing():
    done = repair(samples(ROWS), Wanted(mask=True))
    assert len(done.rows) == len(ROWS)
    assert set(done.changed) == {"mobile", "email"}


@pytest.mark.parametrize("wanted", [Wanted("safe"), Wanted("all", mask=True), Wanted(mask=True)])
def test_every_change_can_be_taken_back(tmp_path: Path, wanted: Wanted):
    done = repair(samples(ROWS), wanted)
    journal = write(done, samples(ROWS), tmp_path / "clean.jsonl")
    lines = (tmp_path / "clean.jsonl").read_text(encoding="utf-8").splitlines()
    back = undo([json.loads(line) for line in lines], journal)
    assert [_parsed(row) for row in back] == [_parsed(row) for row in ROWS]


def _parsed(row: dict[str, Any]) -> dict[str, Any]:
    """Messages inside a string as messages: JSON has more than one way to write them."""
    return {**row, "messages": json.loads(row["messages"])} if isinstance(row.get("messages"), str) else row


def test_a_journal_of_other_rows_is_refused(tmp_path: Path):
    done = repair(samples(ROWS), Wanted("safe"))
    journal = write(done, samples(ROWS), tmp_path / "clean.jsonl")
    rows = [dict(sample.values) for sample in done.rows]
    with pytest.raises(DataError, match="no journal of these rows"):
        undo(rows[1:], journal)
    with pytest.raises(DataError, match="no journal of these rows"):
        undo([{**rows[0], "output": "別の答え"}, *rows[1:]], journal)
    with pytest.raises(DataError, match="no journal of these rows"):
        undo(rows, tmp_path / "none.jsonl")
    for text in ("", "[]", '{"doctor": 1}', '{"doctor": 1, "rows": 1000000000000}', "{", '{"doctor": 1, "rows": "x"}'):
        (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(DataError):
            undo(rows, tmp_path / "bad.jsonl")


_TEXTS = st.text(
    st.sampled_from("東京は首都です。、「」『』\n [1]2３か\u3099é\u200b\u00a0⻑&amp;<|im_end|>`=：はい"), max_size=60
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(_TEXTS, _TEXTS), min_size=1, max_size=3))
def test_repairs_are_made_once_and_undone_exactly(pairs: list[tuple[str, str]]):
    """Whatever the texts: a second repair changes nothing, other values stay, and the changes taken back give the rows."""
    rows = [{"n": number, "instruction": first, "output": second} for number, (first, second) in enumerate(pairs)]
    done = repair(samples(rows), Wanted("safe"))
    again = repair(done.rows, Wanted("safe"))
    assert again.rows == done.rows
    left = {sample.number: dict(sample.values) for sample in done.rows}
    for item in reversed(done.journal):
        if "dropped" in item:
            left[item["row"]] = item["dropped"]
        else:
            left[item["row"]] = replaced(left[item["row"]], item["place"], item["before"])
    assert [left[number] for number in sorted(left)] == rows
    assert all(sample.values["n"] == rows[sample.number - 1]["n"] for sample in done.rows)


def test_one_style_can_be_kept():
    rows = [
        {"instruction": "首都は？", "output": "東京です。人口も多いです。"},
        {"instruction": "次は？", "output": "大阪である。港がある。"},
        {"instruction": "山は？", "output": "富士山です。高い。美しいです。雪がある。"},
        {"instruction": "町は？", "output": "横浜、神戸、長崎"},
    ]
    kept_by_style: dict[Style, list[int]] = {"polite": [1, 4], "plain": [2, 4]}
    for style, kept in kept_by_style.items():
        done = repair(samples(rows), Wanted(style=style))
        assert [sample.number for sample in done.rows] == kept
        assert done.changed == {}


def test_the_journal_is_for_its_owner(tmp_path: Path):
    journal = write(repair(samples(ROWS), Wanted(mask=True)), samples(ROWS), tmp_path / "clean.jsonl")
    assert "090-1234-5678" in journal.read_text(encoding="utf-8")
    assert os.name == "nt" or journal.stat().st_mode & 0o077 == 0


def test_what_the_report_promises_is_what_is_done(tmp_path: Path):
    """Two rows are mojibake; of one bytes were lost, so that it cannot be repaired."""
    whole = "有給休暇の申請方法を教えてください。".encode().decode("latin-1")
    lost = "有給休暇の申請方法を教えてください。".encode().decode("cp932", errors="replace")
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": text, "output": "人事部に連絡してください。"} for text in (whole, lost)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = examine(file)
    assert found.rows("mojibake") == 2
    assert any(
        "repairs 1 places and leaves 0 rows out" in line or "1 か所を直し、0 行" in line for line in lines(found)
    )
    done = repair(found.samples, Wanted(fix="safe"))
    assert sum(done.changed.values()) == 1


def test_what_one_repair_uncovers_another_one_repairs():
    """か and its mark with a character of no width between them."""
    done = repair(samples([{"instruction": "首都は？", "output": "か\u200b\u3099っこう"}]), Wanted(fix="safe"))
    assert done.rows[0].values["output"] == "がっこう"
    assert [change["rule"] for change in done.journal] == ["zero_width", "decomposed"]
    assert repair(done.rows, Wanted(fix="safe")).journal == []
