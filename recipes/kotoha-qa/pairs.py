"""Writes pairs of answers from kotoha-qa: python recipes/kotoha-qa/pairs.py FOLDER

Each question has its right answer as the better one, and the answer to another question, drawn by a seed, as the worse
one: training pairs from the training rows (pairs.jsonl), held-out pairs from the phrasings that are no training rows
(held_out_pairs.jsonl), whose worse answers are training rows' too. same_kind_pairs.jsonl and
held_out_same_kind_pairs.jsonl draw the worse answer from questions of the same kind (another town, another year).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from ai_finetuning.embedded import data_file

Row = dict[str, str]


def answered(part: str = "") -> list[tuple[str, str, str]]:
    """(kind, question, answer) of every row of a part of kotoha-qa."""
    with data_file(f"embedded:kotoha-qa{part}").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    talks = [(row["kind"].split("/")[-1], row["messages"]) for row in rows]
    return [(kind, talk[0]["content"], talk[1]["content"]) for kind, talk in talks]


def pairs(rows: Sequence[tuple[str, str, str]], others: Sequence[tuple[str, str, str]], seed: int) -> list[Row]:
    """Each row with an answer of `others` that is another one than its own."""
    draw = random.Random(seed)
    answers = [answer for _, _, answer in others]
    return [_pair(question, right, answers, draw) for _, question, right in rows]


def same_kind(rows: Sequence[tuple[str, str, str]], others: Sequence[tuple[str, str, str]], seed: int) -> list[Row]:
    """Each row with another answer to a question of its kind."""
    draw = random.Random(seed)
    answers: dict[str, list[str]] = {}
    for kind, _, answer in others:
        answers.setdefault(kind, []).append(answer)
    return [_pair(question, right, answers[kind], draw) for kind, question, right in rows]


def _pair(question: str, right: str, answers: Sequence[str], draw: random.Random) -> Row:
    wrong = right
    while wrong == right:
        wrong = draw.choice(answers)
    return {"prompt": question, "chosen": right, "rejected": wrong}


def write(folder: Path) -> None:
    """The four files."""
    folder.mkdir(parents=True, exist_ok=True)
    train, held_out = answered(), answered("/held_out_phrasings")
    for ending, make in (("pairs", pairs), ("same_kind_pairs", same_kind)):
        for name, rows, seed in ((ending, train, 0), (f"held_out_{ending}", held_out, 1)):
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in make(rows, train, seed)]
            (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
