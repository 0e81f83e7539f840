"""Writes the files of kotoha-qa and kotoha-text from their programs: python recipes/kotoha-qa/make.py"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import ai_finetuning.embedded

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `recipes`, where this is run by its path

from recipes.kotoha.corpus import corpus
from recipes.kotoha.questions import dataset

PLACE = Path(ai_finetuning.embedded.__file__).parent
# Documents of kotoha-text: 128 rows of the benchmark of quantization.
DOCUMENTS = 1024


def write(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """A row a line."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


for part, rows in dataset().items():
    write(PLACE / "kotoha-qa" / f"{part}.jsonl", rows)
    print(part, len(rows), dict(Counter(str(row["kind"]).split("/")[0] for row in rows)))
write(PLACE / "kotoha-text" / "train.jsonl", [{"text": text} for text in corpus(DOCUMENTS)])
