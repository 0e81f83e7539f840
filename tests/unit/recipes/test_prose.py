"""The prose that ships for `data.replay`: whose it is, how large, and that it shares no work and no text with what is held out."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest
from tests.support.scripts import script

from ai_finetuning import embedded

ROOT = Path(__file__).resolve().parents[3]
RECIPE = script("recipes/kotoha-tiny/prose.py")
SHARED = Path(os.environ.get("AIFT_SHARED", ROOT.parent / "shared"))
FILE = embedded.data_file("embedded:prose")
FOLDER = FILE.parent
ROWS = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
EVALUATED = [
    json.loads(line)
    for line in embedded.data_file("embedded:general-prose/passages").read_text(encoding="utf-8").splitlines()
]
# Runs of eight characters that a passage may share with others: phrases that many works hold.
PHRASES = 0.1


def shared_with(texts: list[str]) -> float:
    """The largest share of a passage's 8-grams that these texts hold, all of them together."""
    held = set().union(*(RECIPE.grams(text) for text in texts))
    return max(len(RECIPE.grams(row["text"]) & held) / len(RECIPE.grams(row["text"])) for row in ROWS)


def test_one_whole_passage_a_work_in_at_most_a_megabyte():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 1_000_000
    assert {path.name for path in FOLDER.iterdir()} == {"train.jsonl", "README.md"}
    assert len(ROWS) > 400
    assert {len(row["text"]) for row in ROWS} == {600}
    assert max(Counter(row["work"] for row in ROWS).values()) == 1


def test_credits_stay_with_every_passage():
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for row in ROWS:
        assert all(row[key] for key in ("author", "title", "source_book")), row["work"]
        names = (row[key] for key in ("author", "title", "source_book", "input_by", "proofread_by"))
        assert f"| {' | '.join(map(str, names))} |" in card


def test_no_work_is_held_out_or_evaluated():
    """prepare.py writes a work into held_out.jsonl where this is true."""
    assert not [row["work"] for row in ROWS if RECIPE.held_out(row["work"])]
    assert not {row["work"] for row in ROWS} & {row["work"] for row in EVALUATED}
    assert not {(row["author"], row["title"]) for row in ROWS} & {(row["author"], row["title"]) for row in EVALUATED}


def test_no_text_of_the_evaluation_passages():
    assert shared_with([row["text"] for row in EVALUATED]) < PHRASES


def test_a_work_that_stands_in_a_held_out_one_is_left_out():
    text = "".join(chr(0x4E00 + number) for number in range(3000)) + "\n"
    credit = {"author": "甲", "source_book": "底本", "input_by": None, "proofread_by": None}
    other = text[::-1]
    works = [
        {"id": "a", "title": "乙", "text": "\n".join([text] * 2), **credit},  # the same text by another id
        {"id": "b", "title": "丙", "text": "\n".join([other] * 2), **credit},
        {"id": "c", "title": "丁", "text": "\n".join([other[:2500]] * 2), **credit},  # the same title
    ]
    kept = [{"id": "z", "title": "丁", "text": text, **credit}]
    assert [row["work"] for row in RECIPE.chosen(works, kept)] == ["b"]


@pytest.mark.slow
def test_the_recipe_writes_the_same_folder_again_without_text_of_held_out_works(tmp_path: Path):
    source = SHARED / "data" / "prose" / "aozora_large.jsonl.gz"
    if not source.is_file():
        pytest.skip(f"{source} is not there (AIFT_SHARED)")
    RECIPE.main(SHARED, tmp_path)
    for name in ("train.jsonl", "README.md"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
    with gzip.open(source, "rt", encoding="utf-8") as file:
        held_out = [row["text"] for row in map(json.loads, file) if RECIPE.held_out(row["id"])]
    assert len(held_out) == len(set(held_out)) == 37  # two of them are editions of one work
    assert shared_with(held_out) <= PHRASES
