"""The prose that ships for evaluation: whose it is, and that nothing that is trained on holds it."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from recipes.kotoha.corpus import corpus
from tests.support.scripts import script

from ai_finetuning import embedded

ROOT = Path(__file__).resolve().parents[3]
RECIPE = script("recipes/kotoha-tiny/passages.py")
SHARED = Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared"))
FOLDER = Path(embedded.__file__).parent / "general-prose"
ROWS = [json.loads(line) for line in (FOLDER / "passages.jsonl").read_text(encoding="utf-8").splitlines()]


def test_48_passages_at_most_two_a_work_with_their_credits():
    assert len(ROWS) == 48
    assert {len(row["text"]) for row in ROWS} == {600}
    assert max(Counter(row["work"] for row in ROWS).values()) == 2
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert all(row[key] for key in ("author", "title", "source_book", "input_by")), row["work"]
        assert row["source_book"] in card


def test_every_work_is_one_that_the_recipe_holds_out():
    """prepare.py writes a work into train.jsonl only where this is false."""
    assert all(RECIPE.held_out(row["work"]) for row in ROWS)


def test_nothing_that_ships_or_is_generated_holds_a_passage():
    trained = [
        text
        for path in sorted(FOLDER.parent.glob("*/*.jsonl"))
        if path.parent != FOLDER
        for text in [path.read_text(encoding="utf-8")]
    ]
    trained += corpus(2000, seed=1)
    assert not [row["title"] for row in ROWS for text in trained if row["text"][100:140] in text]


def test_no_recipe_or_configuration_trains_on_them():
    files = [*ROOT.glob("recipes/**/*"), *ROOT.glob("configs/**/*"), *ROOT.glob("examples/**/*")]
    named = [
        path
        for path in files
        if path.suffix in (".yaml", ".yml", ".sh") and "general-prose" in path.read_text(encoding="utf-8")
    ]
    assert not named


@pytest.mark.slow
def test_the_recipe_writes_the_same_folder_again(tmp_path: Path):
    source = SHARED / "data" / "prose" / "aozora_large.jsonl.gz"
    if not source.is_file():
        pytest.skip(f"{source} is not there (AIFT_SHARED)")
    RECIPE.main(SHARED, tmp_path)
    for name in ("passages.jsonl", "README.md"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
