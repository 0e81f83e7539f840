"""kotoha-qa: the files are what the program makes, every row is right, and they train by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from recipes.kotoha.corpus import corpus
from recipes.kotoha.questions import dataset, facts, kanji_number
from tests.support.commands import call

from ai_finetuning import embedded
from ai_finetuning.errors import InputNotFoundError

FOLDER = Path(embedded.__file__).parent / "kotoha-qa"
RECIPE = Path(__file__).parents[2] / "recipes" / "kotoha-qa" / "check.py"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("kotoha_qa_check", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_program_makes():
    for part, rows in dataset().items():
        lines = (FOLDER / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows
        assert f"| `{part}.jsonl` | {len(rows):,} |" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_text_that_ships_is_what_the_program_makes():
    """The benchmark of quantization measures on it, a text for each row."""
    lines = (FOLDER.parent / "kotoha-text" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["text"] for line in lines] == embedded.texts() == corpus(1024)


def test_questions_are_those_of_the_files():
    for part in ("held_out_phrasings", "held_out_facts"):
        rows = [row["messages"] for row in dataset()[part]]
        assert embedded.questions(part) == [(talk[0]["content"], talk[1]["content"]) for talk in rows]


def test_there_are_enough_rows_of_enough_kinds():
    rows = dataset()["train"]
    assert len(rows) >= 2000
    kinds = {str(row["kind"]) for row in rows}
    assert {"seat", "region", "unit", "days", "counter", "polite", "choose"} <= kinds
    assert sum(kind.startswith("multi_turn/") for kind in kinds) >= 10
    known = [fact for fact in facts() if not fact.held_out]
    assert 0.05 < 1 - len(known) / len(facts()) < 0.15


def test_every_row_is_right(check):
    assert check.problems(FOLDER) == []


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("unit", "です。", "0です。"),
        ("numeral", "です。", "一です。"),
        ("days", "日です。", "0日です。"),
        ("next", "です。", "年です。"),
        ("era", "年です。", "0年です。"),
        ("katakana", "」です。", "ア」です。"),
        ("length", "文字です。", "0文字です。"),
        ("seat", "市です。", "西市です。"),
        ("polite", "ます。", "ましょう。"),
    ],
)
def test_the_check_finds_a_wrong_answer(check, tmp_path: Path, kind: str, old: str, new: str):
    shutil.copytree(FOLDER, tmp_path / "copy")
    path = tmp_path / "copy" / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    row = next(row for row in rows if row["kind"] == kind and old in row["messages"][1]["content"])
    row["messages"][1]["content"] = row["messages"][1]["content"].replace(old, new)
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in rows), encoding="utf-8")
    assert any(row["messages"][0]["content"] in problem for problem in check.problems(tmp_path / "copy"))


def test_a_held_out_question_in_training_is_found(check, tmp_path: Path):
    shutil.copytree(FOLDER, tmp_path / "copy")
    first = (FOLDER / "held_out_phrasings.jsonl").read_text(encoding="utf-8").splitlines()[0]
    with (tmp_path / "copy" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(first + "\n")
    assert any("asked in training too" in problem for problem in check.problems(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("number", "text"), [(10, "十"), (11, "十一"), (20, "二十"), (110, "百十"), (301, "三百一"), (1999, "千九百九十九")]
)
def test_kanji_numbers(number: int, text: str):
    assert kanji_number(number) == text


def test_the_data_set_trains_by_name(tiny_model_dir: Path, tmp_path: Path, logged):
    code = call(
        "train",
        f"model={tiny_model_dir}",
        "method=lora",
        "data.train=embedded:kotoha-qa",
        "data.eval=embedded:kotoha-qa/held_out_facts",
        "training.evaluation.verdict=false",
        "data.max_length=256",
        f"training.output_dir={tmp_path / 'out'}",
        "max_steps=2",
        "progress=false",
    )
    assert code == 0
    assert "2417 rows" in logged()


def test_unknown_names_list_those_that_there_are():
    with pytest.raises(InputNotFoundError, match="embedded:kotoha-qa/held_out_facts"):
        embedded.data_file("embedded:kotoha")
