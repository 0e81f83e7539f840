"""Writes the files of kotoha-qa from the program: python recipes/kotoha-qa/make.py"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import ai_finetuning.embedded
from ai_finetuning.japanese.kotoha_qa import dataset

for part, rows in dataset().items():
    folder = Path(ai_finetuning.embedded.__file__).parent / "kotoha-qa"
    with (folder / f"{part}.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    kinds = Counter(str(row["kind"]).split("/")[0] for row in rows)
    print(part, len(rows), dict(kinds))
