"""The doctor on pairs of answers: the texts of both sides, equal and swapped ones, length; and what the verbs show of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ai_finetuning.apps.cli.main import run
from ai_finetuning.data.doctor.examination import examine
from ai_finetuning.data.doctor.passages import sample_of
from ai_finetuning.data.doctor.repair import Wanted, repair
from ai_finetuning.data.rows import Row
from ai_finetuning.data.store.mapped import open_store

Q, GOOD, BAD = "首都は？", "東京です。", "知りません。"


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize(
    "row",
    [
        {"質問": Q, "良い回答": GOOD, "悪い回答": BAD},
        {"prompt": Q, "response1": BAD, "response2": GOOD, "preference": "response2"},
        {"prompt": Q, "response_a": GOOD, "response_b": BAD, "winner": "model_a"},
        {"prompt": Q, "response1": GOOD, "response2": BAD, "preference": 1},  # the first, until somebody says
    ],
    ids=str,
)
def test_the_better_answer_is_the_answer_and_the_other_one_is_rejected(row: dict[str, Any]):
    sample = sample_of(Row(row, "a:1"), 1)
    assert sample.pair
    assert [(item.role, item.text) for item in sample.passages] == [
        ("question", Q),
        ("answer", GOOD),
        ("rejected", BAD),
    ]
    assert [item.question for item in sample.passages[1:]] == [Q, Q]


def test_a_pair_that_training_refuses_is_unreadable(tmp_path: Path):
    path = write(tmp_path, [pair(Q, GOOD, BAD), pair(Q, GOOD, ""), {"chosen": GOOD, "rejected": BAD}])
    found = examine(path)
    assert [en.split(": ", 1)[1] for _, en in found.bad.listed()] == [
        "rejected is empty",
        "there is no question: add a column with it (such as prompt), or write both answers as whole conversations",
    ]
    assert found.has_errors


def test_rows_of_another_kind_than_the_first_are_unreadable(tmp_path: Path, capsys):
    """As under the objective that the first row tells; a row whose mark is not known tells nothing."""
    marked, plain = {"prompt": Q, "completion": BAD, "label": False}, {"prompt": Q, "completion": GOOD}
    path = write(tmp_path, [pair(Q, GOOD, BAD), marked, plain])
    found = examine(path)
    assert found.objective == "preference"
    assert sorted(found.refused) == [2, 3]
    assert "objective: kto" in found.refused[2][1]
    assert "objective: sft" in found.refused[3][0]
    assert sorted(examine(path, objective="kto").refused) == [1, 3]
    assert run(["data", "doctor", str(write(tmp_path, [pair(Q, GOOD, BAD)])), "objective=sft"]) == 65
    assert "objective: preference" in capsys.readouterr().out
    assert sorted(examine(write(tmp_path, [{**marked, "label": None}, marked, marked])).refused) == [1]
    assert sorted(examine(write(tmp_path, [plain, pair(Q, GOOD, BAD)])).refused) == [2]


def test_equal_sides_are_found_and_left_out(tmp_path: Path):
    talk = [{"role": "user", "content": Q}, {"role": "assistant", "content": GOOD}]
    rows = [pair(Q, GOOD, BAD), pair("人口は？", GOOD, f"{GOOD} "), {"chosen": talk, "rejected": talk}]
    found = examine(write(tmp_path, rows))
    assert [hit.number for hit in found.hits["pair_equal"]] == [2, 3]
    assert found.has_errors
    done = repair(found.samples, Wanted("all", objective="preference"))
    assert dict(done.dropped) == {"pair_equal": 2}
    assert [item.values for item in done.rows] == rows[:1]


def test_swapped_pairs_name_each_other_and_several_pairs_of_a_question_are_no_contradiction(tmp_path: Path):
    rows = [pair(Q, GOOD, BAD), pair(Q, "大阪です。", BAD), pair(Q, BAD, GOOD), pair("別は？", BAD, GOOD)]
    path = write(tmp_path, rows)
    found = examine(path)
    assert [(hit.number, hit.others) for hit in found.hits["pair_swapped"]] == [
        (1, (f"{path}:3",)),
        (3, (f"{path}:1",)),
    ]
    assert found.hits["same_question"] == []
    marked = [{"prompt": Q, "completion": text, "label": text == GOOD} for text in (GOOD, BAD)]
    assert examine(write(tmp_path, marked)).hits["same_question"] == []
    both_good = [{"prompt": Q, "completion": text, "label": True} for text in (GOOD, BAD)]
    assert [hit.number for hit in examine(write(tmp_path, both_good)).hits["same_question"]] == [1, 2]


def test_length_is_a_finding_where_most_pairs_have_it(tmp_path: Path):
    long = [pair(f"第{number}の町は？", f"{number}番の町です。" * 5, "いいえ。") for number in range(4)]
    short = [pair(f"第{number}の駅は？", f"{number}番です。", f"{number}番ではありません。") for number in range(3)]
    assert [hit.number for hit in examine(write(tmp_path, long + short)).hits["pair_length"]] == [1, 2, 3, 4]
    assert examine(write(tmp_path, long[:2] + short)).hits["pair_length"] == []


def test_both_answers_are_looked_at_for_characters_and_the_chosen_one_for_its_style(tmp_path: Path):
    rows = [pair(Q, GOOD, "はい" * 60), pair("人口は？", "はい" * 60, GOOD), pair("色は？", GOOD, "赤\u200bです。")]
    found = examine(write(tmp_path, rows))
    assert [hit.number for hit in found.hits["loop"]] == [2]
    assert [hit.number for hit in found.hits["zero_width"]] == [3]


ROWS = {
    "preference": [
        pair("日本の首都は？", "東京です。江戸です。", "東京ではありません。"),
        pair("人口は？", "多い。", "少ない。"),
    ],
    "kto": [{"prompt": Q, "completion": BAD, "label": False}, {"prompt": Q, "completion": GOOD, "label": True}],
}


@pytest.mark.parametrize("language", ["ja", "en"])
@pytest.mark.parametrize("objective", ROWS)
def test_a_row_is_drawn_with_what_is_learnt(
    objective: str, language: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AIFT_LANG", language)
    path = write(tmp_path, ROWS[objective])
    assert run(["data", "show", str(path), "--model", "embedded:kotoha-tiny"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(f"objective: {objective}" in line for line in lines)
    titles = [line for line in lines if line.startswith("──")]
    (loss,) = [line.removeprefix("loss: ") for line in lines if line.startswith("loss: ")]
    if objective == "kto":
        assert titles == [{"ja": "── 悪い回答（objective: kto）", "en": "── a bad answer (objective: kto)"}[language]]
        assert set(loss) == {"0", "1"}
        return
    words = {"ja": ("共通", "良い回答", "悪い回答"), "en": ("shared", "chosen", "rejected")}[language]
    assert [word in title for word, title in zip(words, titles, strict=True)] == [True] * 3
    shared, chosen, rejected = loss.split("|")
    assert shared.startswith("0")
    assert shared.endswith("1")  # 東京 begins both answers
    assert set(chosen + rejected) == {"1"}
    drawn = {title: lines[lines.index(title) + 1].replace("|", "") for title in titles}
    assert "日本の首都は？" in drawn[titles[0]]
    assert "江戸です。" in drawn[titles[1]]
    assert "江戸" not in drawn[titles[2]]


def test_the_verbs_measure_divide_and_examine_pairs(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AIFT_LANG", "en")
    path = write(tmp_path, [*ROWS["preference"] * 3, pair("色は？", "赤です。", "青です。")])
    assert run(["data", "stats", str(path), "--model", "embedded:kotoha-tiny", "--max-length", "12"]) == 0
    text = capsys.readouterr().out
    assert "rows over max_length 12: 3 (42.9%)" in text  # 14 tokens with the longer answer, 17 with both
    assert run(["data", "doctor", str(path), "--model", "embedded:kotoha-tiny"]) == 0
    assert "data for objective: preference" not in capsys.readouterr().err
    assert run(["data", "split", str(path), "--out", str(tmp_path / "out"), "--share", "0.3"]) == 0
    sides = [
        (tmp_path / "out" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("train", "eval")
    ]
    questions = [{json.loads(line)["prompt"] for line in side} for side in sides]
    assert not questions[0] & questions[1]
    assert sum(map(len, sides)) == 7


@pytest.mark.parametrize("objective", ROWS)
def test_data_is_prepared_for_the_objective_that_is_named(objective: str, tmp_path: Path, capsys):
    path, out = write(tmp_path, ROWS[objective]), tmp_path / "out"
    command = ["data", "prepare", str(path), "--model", "embedded:kotoha-tiny", "--out", str(out)]
    assert run(command) == 65
    assert f"objective: {objective}" in capsys.readouterr().err
    assert run([*command, f"objective={objective}", "--overwrite"]) == 0
    assert f"objective={objective}" in capsys.readouterr().out.splitlines()[-1]
    stored, manifest = open_store(out)
    assert manifest.settings["objective"] == objective
    assert all(item.fork if objective == "preference" else item.mark for item in stored)
    assert run(["data", "show", str(path), "--model", "embedded:kotoha-tiny", "objective=sft"]) == 65
