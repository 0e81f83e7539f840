"""The pairs that are made of kotoha-qa: the same for the same seed, none of two equal answers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

PATH = Path(__file__).resolve().parents[3] / "recipes" / "kotoha-qa" / "pairs.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kotoha_pairs", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_question_has_its_answer_and_another_one(recipe: ModuleType, tmp_path: Path):
    recipe.write(tmp_path)
    rows = {name: (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8") for name in ("pairs", "held_out_pairs")}
    recipe.write(tmp_path)
    assert rows["pairs"] == (tmp_path / "pairs.jsonl").read_text(encoding="utf-8")
    read = {name: [json.loads(line) for line in text.splitlines()] for name, text in rows.items()}
    assert (len(read["pairs"]), len(read["held_out_pairs"])) == (2417, 669)
    assert all(row["chosen"] != row["rejected"] for part in read.values() for row in part)
    asked = {row["prompt"] for row in read["pairs"]}
    assert not any(row["prompt"] in asked for row in read["held_out_pairs"])
    right = {question: answer for _, question, answer in recipe.answered()}
    assert all(right[row["prompt"]] == row["chosen"] for row in read["pairs"])
