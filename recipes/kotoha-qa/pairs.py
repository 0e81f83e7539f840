"""Writes pairs of answers from kotoha-qa: python recipes/kotoha-qa/pairs.py FOLDER

Each question has its right answer as the better one, and the answer to another question, drawn by a seed, as the worse
one: training pairs from the training rows (pairs.jsonl), held-out pairs from the phrasings that are no training rows
(held_out_pairs.jsonl), whose worse answers are training rows' too.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from ai_finetuning.embedded import data_file

Row = dict[str, str]


def answered(part: str = "") -> list[tuple[str, str]]:
    """(question, answer) of every row of a part of kotoha-qa."""
    with data_file(f"embedded:kotoha-qa{part}").open(encoding="utf-8") as file:
        talks = [json.loads(line)["messages"] for line in file]
    return [(talk[0]["content"], talk[1]["content"]) for talk in talks]


def pairs(rows: Sequence[tuple[str, str]], others: Sequence[tuple[str, str]], seed: int) -> list[Row]:
    """Each row with an answer of `others` that is another one than its own."""
    draw = random.Random(seed)
    answers = [answer for _, answer in others]
    made = []
    for question, right in rows:
        wrong = right
        while wrong == right:
            wrong = draw.choice(answers)
        made.append({"prompt": question, "chosen": right, "rejected": wrong})
    return made


def write(folder: Path) -> None:
    """pairs.jsonl and held_out_pairs.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    train = answered()
    for name, rows, seed in (("pairs", train, 0), ("held_out_pairs", answered("/held_out_phrasings"), 1)):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in pairs(rows, train, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    write(Path(sys.argv[1]))
